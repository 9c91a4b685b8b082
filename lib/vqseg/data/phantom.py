"""Demonstration studies: chests in computed tomography whose true masks are known.

An anatomy is a painter's list of parts in patient millimetres (RAS+, origin in the middle of the chest), so the same
patient comes out on any grid; a later part covers the earlier ones. The random draws (`draw_anatomy`, `draw_grid`) are
apart from their effect (`render`).
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

LABELS = {"lung": 1, "tumour": 2}
FIELD_OF_VIEW_MM = (340.0, 270.0, 240.0)

Vector = tuple[float, float, float]
Floats = NDArray[np.float32]


class Shape(Protocol):
    def distance(self, points: Floats) -> Floats:
        """Signed distance in mm to the surface, negative inside: `(3, N)` points in mm -> `(N,)`."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """Radii in mm; an infinite radius makes a cylinder along that axis."""

    centre: Vector
    radii: Vector

    def distance(self, points: Floats) -> Floats:
        scaled = (points - _column(self.centre)) / _column(self.radii)
        norm = np.sqrt(np.einsum("cn,cn->n", scaled, scaled)) + np.float32(1e-6)
        slope = np.linalg.norm(scaled / _column(self.radii), axis=0) / norm + np.float32(1e-6)
        return (norm - 1) / slope  # exact on the surface to first order, which is where partial volume needs it


@dataclass(frozen=True)
class Capsule:
    """Everything within `radius` mm of the line from `start` to `end`: airways and vessels."""

    start: Vector
    end: Vector
    radius: float

    def distance(self, points: Floats) -> Floats:
        line = _column(self.end) - _column(self.start)
        offset = points - _column(self.start)
        along = np.clip((line * offset).sum(0) / (line * line).sum(), 0, 1)
        return np.linalg.norm(offset - line * along, axis=0) - np.float32(self.radius)


@dataclass(frozen=True)
class Lump:
    """A ball whose radius (mm) swells by the fraction `swellings[i]` along the unit vector `directions[i]`."""

    centre: Vector
    radius: float
    directions: tuple[Vector, ...]
    swellings: tuple[float, ...]

    def distance(self, points: Floats) -> Floats:
        offset = points - _column(self.centre)
        length = np.linalg.norm(offset, axis=0)
        cosines = np.asarray(self.directions, np.float32) @ (offset / (length + np.float32(1e-6)))
        legendre = (3 * cosines**2 - 1) / 2  # mean 0 over the sphere, so the volume hardly changes
        return length - np.float32(self.radius) * (1 + np.asarray(self.swellings, np.float32) @ legendre)


@dataclass(frozen=True)
class Part:
    """`hu` in Hounsfield units; `label` None leaves the mask as it is (airways and vessels belong to their organ)."""

    name: str
    shape: Shape
    hu: float
    label: int | None = None


@dataclass(frozen=True)
class Anatomy:
    parts: tuple[Part, ...]
    noise_hu: float


@dataclass(frozen=True)
class Grid:
    """Voxels `shape` of `spacing` mm around `centre` mm, turned by `degrees` around RAS axis `axis`, axes flipped."""

    shape: tuple[int, int, int]
    spacing: Vector
    centre: Vector = (0.0, 0.0, 0.0)
    axis: int = 2
    degrees: float = 0.0
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def affine(self) -> NDArray[np.float64]:
        """`(4, 4)`: voxel index -> RAS+ mm."""
        first, second = (self.axis + 1) % 3, (self.axis + 2) % 3
        cos, sin = np.cos(np.deg2rad(self.degrees)), np.sin(np.deg2rad(self.degrees))
        rotation = np.eye(3)
        rotation[[first, first, second, second], [first, second, first, second]] = cos, -sin, sin, cos
        affine = np.eye(4)
        affine[:3, :3] = rotation * np.asarray(self.spacing) * np.where(self.flips, -1.0, 1.0)
        affine[:3, 3] = np.asarray(self.centre) - affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2)
        return affine

    def points(self) -> Floats:
        """`(3, N)` centres of the voxels in mm, the last axis fastest."""
        index = np.indices(self.shape, dtype=np.float32).reshape(3, -1)
        affine = self.affine.astype(np.float32)
        return affine[:3, :3] @ index + affine[:3, 3:]


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient: size, position, side and place of the tumour and intensities differ between draws."""
    size = rng.uniform(0.88, 0.98)
    rim = rng.uniform(8, 14)
    body = (155 * size, 108 * size, np.inf)
    muscle = (body[0] - rim, body[1] - rim, np.inf)
    parts = [
        Part("fat", Ellipsoid((0, 0, 0), body), rng.normal(-100, 10), 0),
        Part("muscle", Ellipsoid((0, 0, 0), muscle), rng.normal(40, 8), 0),
        Part("spine", Ellipsoid((0, -72 * size, 0), (16, 18, np.inf)), rng.normal(250, 40), 0),
    ]
    lungs = {side: _draw_lung(rng, side, size) for side in (-1, 1)}
    air = rng.normal(-800, 25)
    parts += [Part("lung", lung, air, LABELS["lung"]) for lung in lungs.values()]
    parts += [_draw_dome(rng, lung) for lung in lungs.values()]
    heart = Ellipsoid(_vary(rng, size, (-14, 20, -38), 0.1), _vary(rng, size, (42, 40, 46), 0.06))
    parts.append(Part("heart", heart, rng.normal(45, 8), 0))
    parts += [_draw_vessel(rng, lung, side) for side, lung in lungs.items() for _ in range(3)]

    ill = int(rng.choice((-1, 1)))
    tumour = _draw_tumour(rng, lungs[ill], ill)
    parts += _draw_airways(rng, lungs, ill, tumour)
    parts.append(Part("tumour", tumour, rng.normal(30, 12), LABELS["tumour"]))
    return Anatomy(tuple(parts), noise_hu=rng.uniform(12, 25))


def draw_grid(rng: np.random.Generator) -> Grid:
    """A scanner's grid around the chest: about half of them oblique by 5-15 degrees, about half flipped."""
    plane, slice_distance = rng.uniform(3.2, 4.0), rng.uniform(5.0, 6.0)
    spacing = (float(plane), float(plane), float(slice_distance))
    shape = tuple(int(np.ceil(extent / step)) for extent, step in zip(FIELD_OF_VIEW_MM, spacing, strict=True))
    centre = _vector(rng.uniform(-3, 3, 3))
    degrees = rng.choice((-1, 1)) * rng.uniform(5, 15) if rng.random() < 0.5 else 0.0
    flips = [(True, True, False), (False, False, True), (True, True, True)][rng.integers(3)]
    flipped = flips if rng.random() < 0.5 else (False, False, False)
    return Grid((shape[0], shape[1], shape[2]), spacing, centre, int(rng.integers(3)), float(degrees), flipped)


def render(anatomy: Anatomy, grid: Grid, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """The image in HU and its mask, both `grid.shape`; edges are blurred over one voxel, noise comes from `rng`."""
    points = grid.points()
    blur = np.float32(np.mean(grid.spacing))
    image = np.full(points.shape[1], -1000, np.float32)
    mask = np.zeros(points.shape[1], np.uint8)
    for part in anatomy.parts:
        distance = part.shape.distance(points)
        share = np.clip(np.float32(0.5) - distance / blur, 0, 1)
        image += share * (np.float32(part.hu) - image)
        if part.label is not None:
            mask[distance < 0] = part.label
    image += np.float32(anatomy.noise_hu) * rng.standard_normal(image.shape, np.float32)
    stored = np.rint(image).clip(-1024, 3071).astype(np.int16)
    return stored.reshape(grid.shape), mask.reshape(grid.shape)


def write_demo_studies(
    folder: Path, count: int = 12, labelled: int = 3, seed: int = 0, reference: Path | None = None
) -> None:
    """Write `count` studies in MONAI Label's local-folder layout; the masks of the first `labelled` are final labels.

    `reference` receives the masks of all studies, for scoring. Files that exist are left alone (the seed they were made
    with is not checked) and each file appears whole or not at all, so a second call completes an interrupted one.

    Raises ValueError when `labelled` is not within 0..count or `reference` lies inside `folder`, where the server would
    offer the answers as studies.
    """
    if not 0 <= labelled <= count:
        raise ValueError(f"labelled must be within 0..{count}, not {labelled}")
    if reference is not None and reference.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{reference}: the reference masks must lie outside the studies")
    _write_missing(folder / "labels.json", json.dumps(LABELS).encode())
    for index in range(count):
        name = f"phantom_{index + 1:02d}.nii.gz"
        masks = [folder / "labels" / "final" / name] if index < labelled else []
        masks += [] if reference is None else [reference / name]
        if all(path.exists() for path in (folder / name, *masks)):
            continue
        rng = np.random.default_rng((seed, index))  # each study its own stream: its bytes do not depend on `count`
        anatomy, grid = draw_anatomy(rng), draw_grid(rng)
        image, mask = render(anatomy, grid, rng)
        for path in masks:
            _write_missing(path, _nifti(mask, grid))
        _write_missing(folder / name, _nifti(image, grid))


def _draw_lung(rng: np.random.Generator, side: int, size: float) -> Ellipsoid:
    return Ellipsoid(_vary(rng, size, (64 * side, 0, 0), 0.03), _vary(rng, size, (45, 68, 94), 0.04))


def _draw_dome(rng: np.random.Generator, lung: Ellipsoid) -> Part:
    """The diaphragm, which cuts the lung from below."""
    x, y, z = lung.centre
    shape = Ellipsoid((x, y, z - lung.radii[2]), (lung.radii[0], lung.radii[1], rng.uniform(38, 60)))
    return Part("diaphragm", shape, rng.normal(55, 8), 0)


def _draw_tumour(rng: np.random.Generator, lung: Ellipsoid, side: int) -> Lump:
    """Within the lung, on the lateral and upper side of its middle: away from heart and diaphragm."""
    radius = rng.uniform(11, 19)
    place = _unit(rng) * rng.uniform(0.2, 0.9)
    place[0], place[2] = side * abs(place[0]), abs(place[2])
    centre = np.asarray(lung.centre) + place * (np.asarray(lung.radii) - radius - 3)
    directions = tuple(_vector(_unit(rng)) for _ in range(3))
    return Lump(_vector(centre), float(radius), directions, _vector(rng.uniform(-0.12, 0.12, 3)))


def _draw_airways(rng: np.random.Generator, lungs: dict[int, Ellipsoid], ill: int, tumour: Lump) -> list[Part]:
    """Trachea, main bronchi and one lobar bronchus a side; on the ill side it passes the tumour and touches it."""
    carina = _vector(rng.normal((0, -15, 25), 3))
    tubes = [Capsule(carina, (0.0, -10.0, 200.0), rng.uniform(7, 9))]
    for side, lung in lungs.items():
        hilum, radius = _hilum(lung, side), rng.uniform(4, 5.5)
        goal = _inside(rng, lung)
        if side == ill:
            towards = np.asarray(tumour.centre) - np.asarray(hilum)
            across = np.cross(towards, _unit(rng))
            across *= (tumour.radius + radius) / np.linalg.norm(across)
            past = towards * (0.3 * tumour.radius / np.linalg.norm(towards))
            goal = _vector(np.asarray(tumour.centre) + across + past)
        tubes += [Capsule(carina, hilum, radius + 1), Capsule(hilum, goal, radius)]
    walls = [Part("airway wall", Capsule(tube.start, tube.end, tube.radius + 1.5), 0.0) for tube in tubes]
    return walls + [Part("airway", tube, -970.0) for tube in tubes]


def _draw_vessel(rng: np.random.Generator, lung: Ellipsoid, side: int) -> Part:
    return Part("vessel", Capsule(_hilum(lung, side), _inside(rng, lung), rng.uniform(2.5, 4)), rng.normal(45, 8))


def _hilum(lung: Ellipsoid, side: int) -> Vector:
    return (lung.centre[0] - side * 0.85 * lung.radii[0], lung.centre[1] - 8, lung.centre[2] + 5)


def _inside(rng: np.random.Generator, lung: Ellipsoid) -> Vector:
    return _vector(np.asarray(lung.centre) + _unit(rng) * rng.uniform(0.5, 0.8) * np.asarray(lung.radii))


def _vary(rng: np.random.Generator, size: float, millimetres: Vector, share: float) -> Vector:
    return _vector(size * np.asarray(millimetres) * rng.uniform(1 - share, 1 + share, 3))


def _unit(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _vector(values: NDArray) -> Vector:
    return (float(values[0]), float(values[1]), float(values[2]))


def _column(vector: Vector) -> Floats:
    return np.asarray(vector, np.float32)[:, None]


def _nifti(voxels: NDArray[np.int16] | NDArray[np.uint8], grid: Grid) -> bytes:
    """A compressed NIfTI file without a time stamp, so that the same study has the same bytes."""
    image = nib.Nifti1Image(voxels, grid.affine, dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _write_missing(path: Path, content: bytes) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # hidden, and no image suffix: never a study
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
