"""One way to read an image and a mask: NIfTI through nibabel, DICOM series through SimpleITK.

In memory every volume is in RAS+ axis order: axes permuted and flipped to the closest canonical orientation, never
rotated or resampled, so that a mask goes back to the file's own grid without moving a voxel.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from vqseg.errors import ImageError, LabelError
from vqseg.files import new_file

__all__ = [
    "MAX_VOXELS",
    "Grid",
    "Volume",
    "is_nifti",
    "largest_value",
    "read_grid",
    "read_image",
    "read_mask",
    "write_mask",
]

MAX_VOXELS = 2**30
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_SLICE_THICKNESS = "0018|0050"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file: `shape` (X, Y, Z) and the 4x4 `affine` from voxels to RAS millimetres."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def orientation(self) -> NDArray[np.float64]:
        """nibabel's orientation: for each file axis the RAS axis it runs along and its sign."""
        return nib.io_orientation(self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres on the R, A and S axes."""
        return tuple(nib.affines.voxel_sizes(self.canonical_affine))

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """Affine of the same voxels in RAS+ axis order."""
        return self.affine @ nib.orientations.inv_ornt_aff(self.orientation, self.shape)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of the same voxels in RAS+ axis order."""
        shape = [0, 0, 0]
        for size, axis in zip(self.shape, self.orientation[:, 0], strict=True):
            shape[int(axis)] = size
        return shape[0], shape[1], shape[2]

    def to_ras(self, array: NDArray) -> NDArray:
        """Bring an array of the file's axis order to RAS+ axis order, as a copy with ordinary strides."""
        return nib.apply_orientation(array, self.orientation).copy()

    def restore(self, array: NDArray) -> NDArray:
        """Bring an array of RAS+ axis order back to the file's axis order."""
        axes = self.orientation[:, 0].astype(int)
        restored = array.transpose(axes)
        flipped = [axis for axis, sign in enumerate(self.orientation[:, 1]) if sign < 0]
        return np.flip(restored, flipped).copy()


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
        return _nifti_grid(path, _open(path), ImageError)


def read_image(path: Path) -> Volume:
    """Read a NIfTI file, a DICOM file or the folder of one DICOM series.

    Voxels that are not finite get the lowest finite value. Raises `ImageError` when the image cannot be used: empty,
    truncated, not three-dimensional, colour, complex, without a finite voxel or without a usable affine.
    """
    if not path.exists():
        raise ImageError(path, "there is no such file")
    with _readable(path, ImageError):
        if is_nifti(path):
            image = _open(path)
            grid = _nifti_grid(path, image, ImageError)
            array = np.asarray(image.dataobj).reshape(grid.shape)
        else:
            array, grid = _read_dicom(path)
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        if not finite.any():
            raise ImageError(path, "no voxel has a finite value")
        array = np.where(finite, array, array[finite].min())
    return Volume(grid.to_ras(array), grid, str(path))


def read_mask(path: Path, grid: Grid, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """Read a NIfTI mask that belongs to an image with `grid`; returns uint8 (X, Y, Z) in RAS+ axis order.

    Raises `LabelError` when it cannot be read, lies on another grid or holds a value that is neither 0 nor in `labels`.
    """
    if not path.exists():
        raise LabelError(path, "there is no such file")
    if not is_nifti(path):
        raise LabelError(path, "a label must be a NIfTI file (.nii or .nii.gz)")
    with _readable(path, LabelError):
        image = _open(path)
        own = _nifti_grid(path, image, LabelError)
        if own.shape != grid.shape:
            raise LabelError(path, f"its shape {own.shape} is not that of the image, {grid.shape}")
        if _displacement(own, grid) > 0.1 * min(grid.spacing):
            raise LabelError(path, "it lies elsewhere in space than the image (the affines differ)")
        array = np.asarray(image.dataobj).reshape(own.shape)
    found = np.unique(array)
    if found[-1] == 0 == found[0]:
        return np.zeros(grid.canonical_shape, np.uint8)
    unknown = [value for value in found.tolist() if value not in {0, *labels.values()}]
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise LabelError(path, f"it holds the value {unknown[0]:g}; known values are 0 and {known}")
    return grid.to_ras(array.astype(np.uint8))


def largest_value(path: Path) -> int:
    """The largest value in a NIfTI mask. Raises `LabelError`, also for one above 255."""
    with _readable(path, LabelError):
        image = _open(path)
        _nifti_grid(path, image, LabelError)
        largest = np.asarray(image.dataobj).max()
    if not 0 <= largest <= 255:
        raise LabelError(path, f"its largest value is {largest:g}; a mask holds values from 0 to 255")
    return int(largest)


def write_mask(mask: NDArray[np.uint8], grid: Grid, path: Path) -> None:
    """Write a mask (X, Y, Z) of RAS+ axis order as NIfTI on the image's own grid, whole or not at all."""
    image = nib.Nifti1Image(grid.restore(mask.astype(np.uint8)), grid.affine)
    image.header.set_xyzt_units("mm")
    with new_file(path) as temporary:
        nib.save(image, temporary)


def _read_dicom(path: Path) -> tuple[NDArray, Grid]:
    if path.is_dir():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            raise ImageError(path, f"expected the files of one DICOM series, found {len(series)}")
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
        image = sitk.ReadImage(files if len(files) > 1 else files[0])
    else:
        image = sitk.ReadImage(str(path))
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(path, "expected a volume with one value per voxel (no colour, no time)")
    spacing = list(image.GetSpacing())
    if image.GetDepth() == 1 and image.HasMetaDataKey(_SLICE_THICKNESS):
        # There is no second slice to tell the distance from; SimpleITK then says 1 mm.
        spacing[2] = float(image.GetMetaData(_SLICE_THICKNESS))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * spacing
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    x, y, z = array.shape
    return array, Grid((x, y, z), _LPS_TO_RAS @ affine)


def _open(path: Path) -> nib.Nifti1Image:
    """Header of a NIfTI-1 or NIfTI-2 file; the voxels are read when they are asked for."""
    return cast(nib.Nifti1Image, nib.load(path))


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
    return Grid((shape[0], shape[1], shape[2]), affine)


def _displacement(one: Grid, other: Grid) -> float:
    """Largest distance in millimetres between the corners of two grids of one shape."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], np.float64)
    corners[:, :3] *= np.array(one.shape) - 1
    return float(np.linalg.norm(corners @ (one.affine - other.affine).T, axis=1).max())


@contextlib.contextmanager
def _readable(path: Path, error: type[ImageError]) -> Iterator[None]:
    """Say what the reading libraries found in the words of `error`, naming the file."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise error(path, "it is too large for the memory of this machine") from None
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        RuntimeError,
        OverflowError,
        zlib.error,
        ImageFileError,
        HeaderDataError,
    ) as cause:
        words = str(cause).strip().splitlines()
        raise error(path, f"it cannot be read ({words[-1] if words else type(cause).__name__})") from None
