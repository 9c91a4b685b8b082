"""One DICOM series: its slices in the order of space, its voxels, and whether they form a regular volume.

A slice is a file, or a frame of the one file of an enhanced multi-frame series.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from vqseg.data.grid import LPS_TO_RAS, Grid
from vqseg.errors import ImageError

__all__ = [
    "frame_headers",
    "frame_order",
    "read_series",
    "read_series_header",
    "referenced_series",
    "series_files",
    "series_headers",
]

_PIXELS = 0x7FE00000
_LONG = 2**20
_UNDEFINED = 0xFFFFFFFF
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
# Where an enhanced file keeps what the header of a slice says (DICOM PS3.3 C.7.6.16.2).
_OF_A_FRAME = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}


def series_files(path: Path) -> list[Path]:
    """Files of a series, along its slices; `path` is a file or a folder with one series. Raises `ImageError`."""
    return list(series_headers(path))


def series_headers(path: Path) -> dict[Path, Dataset]:
    """File -> header of the files of a series, as in `series_files`."""
    return _ordered(path) if path.is_dir() else {path: read_series_header(path)}


def frame_headers(header: Dataset) -> list[Dataset]:
    """What the headers of the frames would say, were each a file of its own; in the order of the file.

    Empty unless the file is an enhanced multi-frame one.
    """
    made = []
    common = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for number, groups in enumerate(header.get("PerFrameFunctionalGroupsSequence") or [], 1):
        frame = Dataset()
        frame.Rows, frame.Columns, frame.ReferencedFrameNumber = header.Rows, header.Columns, number
        for name, keywords in _OF_A_FRAME.items():
            group = groups.get(name) or common[0].get(name) or [Dataset()]
            for keyword in (keyword for keyword in keywords if keyword in group[0]):
                frame[keyword] = group[0][keyword]
        made.append(frame)
    return made


def frame_order(frames: Sequence[Dataset]) -> list[int]:
    """Places in the file of its `frame_headers`, along the slices: files may hold them in any order."""
    depths = np.array([frame.ImagePositionPatient for frame in frames], np.float64) @ _normal(frames[0])
    return [int(place) for place in np.argsort(depths, kind="stable")]


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
    files, frames = [path], []
    if path.is_dir():
        headers = _ordered(path)
        files = list(headers)
        if len(files) > 1:
            _check_positions(path, list(headers.values()))
    if len(files) == 1:
        with contextlib.suppress(InvalidDicomError):  # SimpleITK may know what it is
            frames = _checked_frames(path, read_series_header(files[0]))
    image = sitk.ReadImage([str(file) for file in files] if len(files) > 1 else str(files[0]))
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(path, "expected a volume with one value per voxel (no colour, no time)")
    if frames:
        return _volume_of_frames(path, sitk.GetArrayFromImage(image).transpose(2, 1, 0), frames)
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
    """Everything but the pixels and what follows them. Raises `ImageError` when the file is shorter than it says."""
    # Deferred: what is long is passed over, not read.
    whole = pydicom.dcmread(file, defer_size=_LONG)
    _check_lengths(file, whole)
    for tag in [tag for tag in whole.keys() if tag >= _PIXELS]:  # noqa: SIM118  (a Dataset iterates over its values)
        del whole[tag]
    return whole


def _check_lengths(file: Path, whole: Dataset) -> None:
    """Raises `ImageError`. GDCM 3.0 sets memory aside for what an element says it holds: gigabytes for a few bytes."""
    size = file.stat().st_size
    for element in whole.values():
        if isinstance(element, RawDataElement) and element.length != _UNDEFINED:
            end = element.value_tell + element.length
            if end > size:
                words = f"its element {element.tag} would end at byte {end}, and the file ends at byte {size}"
                raise ImageError(file, f"it is damaged or cut short: {words}")


def _checked_frames(path: Path, header: Dataset) -> list[Dataset]:
    """`frame_headers`. Raises `ImageError` when the frames form no volume."""
    if header.get("Rows") is None or header.get("Columns") is None:
        # Where the damage is so early that pydicom finds no element, no length is known to check either.
        raise ImageError(path, "it is damaged or no image: its header says nothing of Rows and Columns")
    frames = frame_headers(header)
    if not frames and int(header.get("NumberOfFrames") or 1) > 1:
        raise ImageError(path, f"its {header.NumberOfFrames} frames do not say where they lie in the patient")
    if not frames:
        return []
    _check_layout(path, frames)
    if len(frames) > 1:
        _check_positions(path, [frames[place] for place in frame_order(frames)])
    # SimpleITK takes that of the first frame for all of them.
    if len({(frame.get("RescaleSlope"), frame.get("RescaleIntercept")) for frame in frames}) > 1:
        raise ImageError(path, "its frames differ in the scale of their values (rescale slope and intercept)")
    return frames


def _volume_of_frames(path: Path, array: NDArray, frames: Sequence[Dataset]) -> tuple[NDArray, Grid]:
    """Voxels along the slices, and their grid, of an array (columns, rows, frames) in the order of the file.

    SimpleITK reads the frames right, but takes their distance, order and direction from the first few.
    """
    if array.shape[2] != len(frames):
        raise ImageError(path, f"it holds {array.shape[2]} frames and describes {len(frames)}")
    order = frame_order(frames)
    first, last = frames[order[0]], frames[order[-1]]
    origin = np.array(first.ImagePositionPatient, np.float64)
    row, column = np.array(first.ImageOrientationPatient, np.float64).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * first.PixelSpacing[1], column * first.PixelSpacing[0]
    if len(frames) > 1:
        affine[:3, 2] = (np.array(last.ImagePositionPatient, np.float64) - origin) / (len(frames) - 1)
    else:
        affine[:3, 2] = _normal(first) * float(first.get("SliceThickness") or 1)
    affine[:3, 3] = origin
    x, y, z = array.shape
    return array[:, :, order], Grid((x, y, z), LPS_TO_RAS @ affine)


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
    if any("PerFrameFunctionalGroupsSequence" in header for header in headers.values()):
        raise ImageError(folder, f"it has {len(headers)} multi-frame files; only a series of one such file can be read")
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
        both = _named(*headers[where : where + 2])
        raise ImageError(path, f"two of its slices lie at the same place: {both}; remove one of them")
    drift = np.abs(depths - np.linspace(0, depths[-1], len(depths)))
    uneven = np.abs(distances - usual)
    if uneven.max() > _UNEVEN * usual or drift.max() > _OFF_GRID * usual:
        where = int(uneven.argmax())
        raise ImageError(
            path,
            f"its slices are {usual:.4g} mm apart, but {distances[where]:.4g} mm between "
            f"{_named(*headers[where : where + 2])}: some are missing, or it is no volume",
        )
    aside = np.linalg.norm(positions - np.outer(depths, normal), axis=1)
    if aside.max() > _OFF_GRID * min(headers[0].get("PixelSpacing") or [1.0]):
        where = int(aside.argmax())
        tilt = np.degrees(np.arctan2(aside[where], depths[where]))
        raise ImageError(
            path,
            f"its slices are tilted by {tilt:.1f} degrees (gantry tilt) or shifted, {_named(headers[where])} by "
            f"{aside[where]:.3g} mm; resample it to a straight grid",
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
                f"its slices differ in {words}: {first.get(keyword)} in {_named(first)}, "
                f"{header.get(keyword)} in {_named(header)}",
            )


def _normal(header: Dataset) -> NDArray[np.float64]:
    row, column = np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3)
    return np.cross(row, column)


def _named(*headers: Dataset) -> str:
    kind = "frame" if "ReferencedFrameNumber" in headers[0] else "instance"
    numbers = [str(header.get("ReferencedFrameNumber") or header.get("InstanceNumber")) for header in headers]
    return f"{kind}{'s' if len(headers) > 1 else ''} {' and '.join(numbers)}"
