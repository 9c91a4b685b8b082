"""One DICOM series: its files in the order of space, its voxels, and whether they form a regular volume."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from vqseg.data.grid import LPS_TO_RAS, Grid
from vqseg.errors import ImageError

__all__ = ["read_series", "read_series_header", "referenced_series", "series_files", "series_headers"]

_SLICE_THICKNESS = "0018|0050"
# Positions are rounded in the files: so much of the distance of two slices, and so much of a voxel between a slice and
# its place on a regular grid, is no irregularity. Whoever reads masks by position has to allow for the latter.
_UNEVEN = 0.05
_OFF_GRID = 0.3
# What all slices share, and how much the numbers may differ.
_LAYOUT = {
    "Rows": "size",
    "Columns": "size",
    "PixelSpacing": "pixel spacing",
    "ImageOrientationPatient": "direction",
}
_ALIKE = 0.005


def series_files(path: Path) -> list[Path]:
    """Files of a series, along its slices; `path` is a file or a folder with one series. Raises `ImageError`."""
    return list(series_headers(path))


def series_headers(path: Path) -> dict[Path, Dataset]:
    """File -> header of the files of a series, as in `series_files`."""
    return _ordered(path) if path.is_dir() else {path: read_series_header(path)}


def referenced_series(dataset: Dataset) -> str:
    """UID of the image series that a SEG or an RTSTRUCT belongs to; empty when it does not say."""
    try:
        if dataset.Modality == "SEG":
            return str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
        frame = dataset.ReferencedFrameOfReferenceSequence[0]
        return str(frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID)
    except (AttributeError, IndexError, TypeError):  # not there, there and empty, there without a value
        return ""


def read_series(path: Path) -> tuple[NDArray, Grid]:
    """Voxels (X, Y, Z) and their grid, X along the rows of a slice. Raises `ImageError` when they form no volume."""
    files = [path]
    if path.is_dir():
        headers = _ordered(path)
        files = list(headers)
        if len(files) > 1:
            _check_positions(path, list(headers.values()))
    image = sitk.ReadImage([str(file) for file in files] if len(files) > 1 else str(files[0]))
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
    return array, Grid((x, y, z), LPS_TO_RAS @ affine)


def read_series_header(file: Path) -> Dataset:
    """Everything but the pixels."""
    return pydicom.dcmread(file, stop_before_pixels=True)


def _ordered(folder: Path) -> dict[Path, Dataset]:
    """File -> header of the one series in a folder, in the order of space; files of other kinds are passed over."""
    headers = {}
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with contextlib.suppress(InvalidDicomError):
            headers[file] = read_series_header(file)
    series = {str(header.get("SeriesInstanceUID")) for header in headers.values()}
    if len(series) != 1:
        raise ImageError(folder, f"expected one DICOM series in the folder, found {len(series)}")
    if len(headers) == 1:
        return headers
    _check_layout(folder, list(headers.values()))
    normal = _normal(next(iter(headers.values())))
    return dict(sorted(headers.items(), key=lambda item: float(np.dot(item[1].ImagePositionPatient, normal))))


def _check_positions(path: Path, headers: Sequence[Dataset]) -> None:
    """Raises `ImageError` when slices, in order, are missing, double or tilted: the volume would be deformed."""
    normal = _normal(headers[0])
    positions = np.array([header.ImagePositionPatient for header in headers], np.float64)
    positions -= positions[0]
    depths = positions @ normal
    distances = np.diff(depths)
    usual = float(np.median(distances))
    if distances.min() < _UNEVEN * usual or usual == 0:
        where = int(distances.argmin())
        raise ImageError(path, f"two of its slices lie at the same place: {_named(headers, where)}; remove one of them")
    drift = np.abs(depths - np.linspace(0, depths[-1], len(depths)))
    uneven = np.abs(distances - usual)
    if uneven.max() > _UNEVEN * usual or drift.max() > _OFF_GRID * usual:
        where = int(uneven.argmax())
        raise ImageError(
            path,
            f"its slices are {usual:.4g} mm apart, but {distances[where]:.4g} mm between "
            f"{_named(headers, where)}: some are missing, or it is no volume",
        )
    aside = np.linalg.norm(positions - np.outer(depths, normal), axis=1)
    if aside.max() > _OFF_GRID * min(headers[0].get("PixelSpacing") or [1.0]):
        where = int(aside.argmax())
        tilt = np.degrees(np.arctan2(aside[where], depths[where]))
        raise ImageError(
            path,
            f"its slices are tilted by {tilt:.1f} degrees (gantry tilt) or shifted, instance "
            f"{headers[where].get('InstanceNumber')} by {aside[where]:.3g} mm; resample it to a straight grid",
        )


def _check_layout(path: Path, headers: Sequence[Dataset]) -> None:
    """Raises `ImageError` when slices differ in size or direction, or do not say where they lie."""
    if not all(header.get("ImagePositionPatient") and header.get("ImageOrientationPatient") for header in headers):
        raise ImageError(path, "some of its slices do not say where they lie in the patient")
    first = headers[0]
    for (keyword, words), header in itertools.product(_LAYOUT.items(), headers):
        one, other = (np.array(some.get(keyword), np.float64) for some in (first, header))
        if not np.allclose(one, other, rtol=0, atol=_ALIKE, equal_nan=True):
            raise ImageError(
                path,
                f"its slices differ in {words}: {first.get(keyword)} in instance {first.get('InstanceNumber')}, "
                f"{header.get(keyword)} in instance {header.get('InstanceNumber')}",
            )


def _normal(header: Dataset) -> NDArray[np.float64]:
    row, column = np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3)
    return np.cross(row, column)


def _named(headers: Sequence[Dataset], where: int) -> str:
    return f"instances {headers[where].get('InstanceNumber')} and {headers[where + 1].get('InstanceNumber')}"
