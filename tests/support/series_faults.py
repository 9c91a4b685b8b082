"""DICOM series of one small volume: those that are one, however they are written, and those that are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from builders import edit_dicom, move_slice, slice_file
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, generate_uid

SHAPE, SPACING, ORIGIN = (14, 12, 8), (12.0, 11.0, 15.0), (-80.0, -60.0, 40.0)


def voxels(seed: int = 0) -> NDArray[np.int16]:
    """Noise with a bright ball in it, so that a mask of it is no constant."""
    where = np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(SHAPE) / 2
    ball = 800 * (np.linalg.norm(where, axis=-1) < 4)
    return (np.random.default_rng(seed).integers(-900, -100, SHAPE) + ball).astype(np.int16)


def item(**attributes: Any) -> list[Dataset]:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return [made]


def merge(
    folder: Path,
    order: Sequence[int],
    storage: str = EnhancedCTImageStorage,
    *,
    in_each: bool = False,
    slopes: Sequence[float] = (1.0,),
) -> None:
    """Make one enhanced multi-frame file of the single-frame files that `write_dicom` wrote, frames in some order.

    What all frames share stands in the groups of each frame, or in the shared ones.
    """
    slices = [pydicom.dcmread(slice_file(folder, index)) for index in order]
    made = pydicom.dcmread(slice_file(folder, 0))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(made, keyword)
    del made.RescaleSlope, made.RescaleIntercept
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = storage
    made.Modality = "MR" if storage == EnhancedMRImageStorage else "CT"
    made.NumberOfFrames, made.InstanceNumber = len(slices), 1
    shared, each = Dataset(), [Dataset() for _ in slices]
    for index, (groups, one) in enumerate(zip(each, slices, strict=True)):
        groups.PlanePositionSequence = item(ImagePositionPatient=one.ImagePositionPatient)
        owner = groups if in_each else shared
        owner.PlaneOrientationSequence = item(ImageOrientationPatient=one.ImageOrientationPatient)
        owner.PixelMeasuresSequence = item(PixelSpacing=one.PixelSpacing, SliceThickness=one.SliceThickness)
        slope = slopes[index % len(slopes)]
        owner.PixelValueTransformationSequence = item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], each
    made.PixelData = b"".join(one.PixelData for one in slices)
    for file in folder.iterdir():
        file.unlink()
    made.save_as(folder / "frames.dcm")


def edit_all(folder: Path, **attributes: Any) -> None:
    for file in folder.iterdir():
        edit_dicom(file, **attributes)


def tilt(folder: Path) -> None:
    for index in range(SHAPE[2]):
        move_slice(folder, index, (0, 3.0 * index, 0))


def shrink(folder: Path, index: int) -> None:
    columns, rows, _ = SHAPE
    edit_dicom(slice_file(folder, index), Rows=rows - 2, PixelData=bytes(2 * columns * (rows - 2)))


def divide(folder: Path) -> None:
    """Two multi-frame files instead of one."""
    merge(folder, range(SHAPE[2]))
    second = pydicom.dcmread(folder / "frames.dcm")
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    second.save_as(folder / "more.dcm")


def forget_places(folder: Path) -> None:
    merge(folder, range(SHAPE[2]))
    edit_dicom(folder / "frames.dcm", PerFrameFunctionalGroupsSequence=None, SharedFunctionalGroupsSequence=None)


_EVERY_SECOND_TWICE = [1 + index // 2 for index in range(SHAPE[2])]
_SCATTERED = [3, 1, 0, 2, 7, 5, 4, 6]
GOOD = {
    "plain": lambda folder: None,
    "numbered twice": lambda folder: [
        edit_dicom(slice_file(folder, index), InstanceNumber=number) for index, number in enumerate(_EVERY_SECOND_TWICE)
    ],
    "enhanced CT": lambda folder: merge(folder, _SCATTERED, in_each=True),
    "enhanced MR": lambda folder: merge(folder, range(SHAPE[2])[::-1], EnhancedMRImageStorage),
    "far": lambda folder: None,
    "growing": lambda folder: [slice_file(folder, index).rename(folder.parent / f"late_{index}") for index in (6, 7)],
    "vanishing": lambda folder: None,
    "of nobody": lambda folder: edit_all(folder, PatientSex="X"),
}
BAD = {
    "a slice is missing": (lambda folder: slice_file(folder, 3).unlink(), "15 mm apart, but 30 mm between instances"),
    "a slice is smaller": (lambda folder: shrink(folder, 4), "differ in size: "),
    "gantry tilt": (tilt, "degrees (gantry tilt)"),
    "two slices at one place": (lambda folder: move_slice(folder, 4, (0, 0, -15)), "lie at the same place: instances"),
    "a slice without a place": (
        lambda folder: edit_dicom(slice_file(folder, 4), ImagePositionPatient=None),
        "do not say where they lie",
    ),
    "a frame is missing": (
        lambda folder: merge(folder, [0, 1, 2, 4, 5, 6, 7]),
        "15 mm apart, but 30 mm between frames 3 and 4",
    ),
    "two frames at one place": (
        lambda folder: merge(folder, [0, 1, 2, 3, 4, 4, 5, 6, 7]),
        "lie at the same place: frames 5 and 6",
    ),
    "frames of two scales": (
        lambda folder: merge(folder, range(SHAPE[2]), in_each=True, slopes=(1.0, 2.0)),
        "differ in the scale of their values",
    ),
    "frames without places": (forget_places, "8 frames do not say where they lie"),
    "two multi-frame files": (divide, "2 multi-frame files"),
}
