"""One way to read an image and a mask: NIfTI, DICOM series; as masks also DICOM SEG and RTSTRUCT.

In memory every volume is in RAS+ axis order: axes permuted and flipped to the closest canonical orientation, never
rotated or resampled, so that a mask goes back to the file's own grid without moving a voxel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from vqseg.data.dicom_seg import decode_segmentation
from vqseg.data.dicom_series import read_series, read_series_header
from vqseg.data.grid import Grid
from vqseg.data.header import DeclaredVoxels, read_declared
from vqseg.data.rtstruct import decode_structure_set
from vqseg.errors import ImageError, LabelError
from vqseg.files import new_file

__all__ = [
    "MAX_VOXELS",
    "Volume",
    "is_nifti",
    "largest_value",
    "read_grid",
    "read_image",
    "read_mask",
    "read_voxels",
    "write_mask",
]

MAX_VOXELS = 2**30
# No scanner sees farther, and none has voxels so thick; a damaged voxel size would be resampled to gigabytes.
_LONGEST_SIDE = 10_000.0
_LONGEST_VOXEL = 100.0
_NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Volume:
    """An image in RAS+ axis order: `array` float32 (X, Y, Z), `affine` to RAS millimetres, `grid` of its file.

    `source` names it in messages.
    """

    array: NDArray[np.float32]
    grid: Grid
    source: str = "the image"

    @property
    def affine(self) -> NDArray[np.float64]:
        return self.grid.canonical_affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        return self.grid.spacing


def is_nifti(path: Path) -> bool:
    """Whether the file's name is that of a NIfTI image."""
    return path.name.lower().endswith(_NIFTI_SUFFIXES)


def read_grid(path: Path) -> Grid:
    """Shape and affine of an image; for NIfTI only the header is read. Raises `ImageError`."""
    if not is_nifti(path):
        return read_image(path).grid
    with _readable(path, ImageError):
        return _nifti_grid(path, _open(path, ImageError).image, ImageError)


def read_image(path: Path) -> Volume:
    """Read a NIfTI file, a DICOM file or the folder of one DICOM series.

    Voxels that are not finite get the lowest finite value. Raises `ImageError` when the image cannot be used: empty,
    truncated, not three-dimensional, colour, complex, without a finite voxel or without a usable affine.
    """
    array, grid = read_voxels(path)
    with _readable(path, ImageError), np.errstate(over="ignore"):
        array = array.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        if not finite.any():
            raise ImageError(path, "no voxel has a finite value")
        array = np.where(finite, array, array[finite].min())
    return Volume(grid.to_ras(array), grid, str(path))


def read_voxels(path: Path) -> tuple[NDArray, Grid]:
    """Voxels as they are stored, in the axis order of the file, and their grid. Raises `ImageError`."""
    if not path.exists():
        raise ImageError(path, "there is no such file")
    with _readable(path, ImageError):
        if not is_nifti(path):
            array, grid = read_series(path)
            return array, _plausible(path, grid, ImageError)
        file = _open(path, ImageError)
        grid = _nifti_grid(path, file.image, ImageError)
        return _stored(path, file, ImageError).reshape(grid.shape), grid


def read_mask(path: Path, grid: Grid, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """Read the mask of an image with `grid`; returns uint8 (X, Y, Z) in RAS+ axis order.

    NIfTI by the values in `labels`; DICOM, which is SEG or RTSTRUCT, by the names of the structures.
    Raises `LabelError` when it cannot be read, lies on another grid or holds a value that is neither 0 nor in `labels`.
    """
    if not path.exists():
        raise LabelError(path, "there is no such file")
    with _readable(path, LabelError):
        if is_nifti(path):
            return grid.to_ras(_read_nifti_mask(path, grid, labels))
        try:
            modality = str(read_series_header(path).get("Modality"))
        except InvalidDicomError:
            raise LabelError(path, "a label must be a NIfTI file (.nii or .nii.gz) or DICOM SEG or RTSTRUCT") from None
        decode = {"SEG": decode_segmentation, "RTSTRUCT": decode_structure_set}.get(modality)
        if decode is None:
            raise LabelError(path, f"it is DICOM of modality {modality}; a label is SEG or RTSTRUCT")
        return grid.to_ras(decode(path, grid, labels))


def largest_value(path: Path) -> int:
    """The largest value in a NIfTI mask. Raises `LabelError`, also for one above 255."""
    with _readable(path, LabelError):
        file = _open(path, LabelError)
        _nifti_grid(path, file.image, LabelError)
        largest = _stored(path, file, LabelError).max()
    if not 0 <= largest <= 255:
        raise LabelError(path, f"its largest value is {largest:g}; a mask holds values from 0 to 255")
    return int(largest)


def write_mask(mask: NDArray[np.uint8], grid: Grid, path: Path) -> None:
    """Write a mask (X, Y, Z) of RAS+ axis order as NIfTI on the image's own grid, whole or not at all."""
    image = nib.Nifti1Image(grid.restore(mask.astype(np.uint8)), grid.affine)
    image.header.set_xyzt_units("mm")
    with new_file(path) as temporary:
        nib.save(image, temporary)


def _read_nifti_mask(path: Path, grid: Grid, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    file = _open(path, LabelError)
    own = _nifti_grid(path, file.image, LabelError)
    if own.shape != grid.shape:
        raise LabelError(path, f"its shape {own.shape} is not that of the image, {grid.shape}")
    if own.displacement(grid) > 0.1 * min(grid.spacing):
        raise LabelError(path, "it lies elsewhere in space than the image (the affines differ)")
    array = _stored(path, file, LabelError).reshape(own.shape)
    found = np.unique(array)
    if found[-1] == 0 == found[0]:
        return np.zeros(grid.shape, np.uint8)
    unknown = [value for value in found.tolist() if value not in {0, *labels.values()}]
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise LabelError(path, f"it holds the value {unknown[0]:g}; known values are 0 and {known}")
    return array.astype(np.uint8)


@dataclass(frozen=True)
class _NiftiFile:
    """An open `image`, whose voxels are read when they are asked for, and what its header says of them."""

    image: nib.Nifti1Image
    declared: DeclaredVoxels


def _open(path: Path, error: type[ImageError]) -> _NiftiFile:
    """Header of a NIfTI-1 or NIfTI-2 file, which nibabel would read however long it says it is."""
    try:
        with path.open("rb") as file:
            declared = read_declared(file, str(path))
    except ImageError as cause:
        raise error(path, cause.reason) from None
    return _NiftiFile(cast(nib.Nifti1Image, nib.load(path)), declared)


def _stored(path: Path, file: _NiftiFile, error: type[ImageError]) -> NDArray:
    """Voxels in the axis order of the file, unless there is no memory for them: the system would end the process."""
    needed, left = file.declared.reading_bytes, psutil.virtual_memory().available
    if needed > left:
        raise error(path, f"reading it takes {needed / 2**30:.2f} GiB of memory, and there are {left / 2**30:.2f} left")
    return np.asarray(file.image.dataobj)


def _nifti_grid(path: Path, image: nib.Nifti1Image, error: type[ImageError]) -> Grid:
    dtype = image.get_data_dtype()
    if dtype.names:
        raise error(path, "colour images (RGB) cannot be used; expected one value per voxel")
    if np.issubdtype(dtype, np.complexfloating):
        raise error(path, "complex images cannot be used; expected real values")
    shape = tuple(int(size) for size in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise error(path, f"it has {len(shape)} dimensions {shape}; expected a volume with 3")
    if not 0 < np.prod(shape, dtype=np.float64) <= MAX_VOXELS:
        raise error(path, f"its size {shape} is outside 1..{MAX_VOXELS} voxels")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or np.isnan(nib.io_orientation(affine)).any():
        raise error(path, "its affine is singular, so the place of its voxels in the patient is not known")
    return _plausible(path, Grid((shape[0], shape[1], shape[2]), affine), error)


def _plausible(path: Path, grid: Grid, error: type[ImageError]) -> Grid:
    """The grid, unless its voxels are thicker, or reach farther, than those of any scanner."""
    voxel = max(grid.spacing)
    if not voxel <= _LONGEST_VOXEL:
        raise error(path, f"a voxel is {voxel:.3g} mm long, and none is longer than {_LONGEST_VOXEL:g} in an image")
    longest = max(size * spacing for size, spacing in zip(grid.canonical_shape, grid.spacing, strict=True))
    if not longest <= _LONGEST_SIDE:
        raise error(
            path, f"it is {longest:.3g} mm long, and no image is longer than {_LONGEST_SIDE:g}: its voxel size is wrong"
        )
    return grid


@contextlib.contextmanager
def _readable(path: Path, error: type[ImageError]) -> Iterator[None]:
    """Say what the reading libraries found in the words of `error`, naming the file."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise error(path, "it is too large for the memory of this machine") from None
    except Exception as cause:  # there is no end to what nibabel, pydicom and their decoders raise for a damaged file
        words = str(cause).strip().splitlines()
        raise error(path, f"it cannot be read ({words[-1] if words else type(cause).__name__})") from None
