"""Masks as DICOM Segmentation objects (SEG), by the names of their segments.

Written as BINARY, the one kind that OHIF 3.10, 3D Slicer and MONAI Label 0.8.5 all read. Numbers of segments mean
nothing: DICOM counts the segments that are there from 1, and every program counts differently; names are what lasts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from vqseg.data.dicom_series import frame_headers, frame_order, series_headers
from vqseg.data.grid import LPS_TO_RAS, Grid
from vqseg.errors import LabelError
from vqseg.files import new_file

__all__ = ["Origin", "decode_segmentation", "model_of", "segment_names", "write_segmentation"]

# Distance of a frame from the image's voxels up to which it counts as lying on them, in voxels: more than a slice may
# lie off the regular grid (`dicom_series`), for a frame lies where its slice says.
_OFF_GRID = 0.4
# Attributes that may be empty, and are left out by some, but have to be there.
_MAY_BE_EMPTY = (
    "AccessionNumber",
    "LossyImageCompressionMethod",
    "LossyImageCompressionRatio",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_ABNORMALITY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_NEOPLASM = Code("108369006", "SCT", "Neoplasm")
_ABNORMAL = {
    "tumor": _NEOPLASM,
    "tumour": _NEOPLASM,
    "neoplasm": _NEOPLASM,
    "mass": Code("4147007", "SCT", "Mass"),
    "lesion": Code("52988006", "SCT", "Lesion"),
    "nodule": Code("27925004", "SCT", "Nodule"),
}
_ALGORITHM = "VQ-Seg"
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
# In the dictionary too, but they name a side, not a structure.
_QUALIFIERS = ("left", "right")


@dataclass(frozen=True)
class Origin:
    """Who made a mask: `creator` the annotator; `model_version` of the mask that was corrected, if there was one."""

    creator: str
    model_version: str | None = None


def write_segmentation(
    mask: NDArray[np.uint8], grid: Grid, series: Path, labels: Mapping[str, int], origin: Origin, path: Path
) -> None:
    """Write a mask (X, Y, Z) of RAS+ axis order as SEG of the DICOM `series` (folder or file) with `grid`.

    Only the structures that are there become segments. Raises `LabelError` for an empty mask, which SEG cannot hold.
    """
    present = [
        (name, value) for name, value in sorted(labels.items(), key=lambda item: item[1]) if (mask == value).any()
    ]
    if not present:
        raise LabelError(path, "the mask is empty: a DICOM SEG needs at least one voxel of one structure")
    numbers = np.zeros(256, np.uint8)
    for number, (_, value) in enumerate(present, 1):
        numbers[value] = number
    frames = numbers[grid.restore(mask)].transpose(2, 1, 0)
    distance = float(np.linalg.norm(grid.affine[:3, 2]))
    sources = [_source(header, distance) for header in series_headers(series).values()]
    in_one_file = frame_headers(sources[0])
    slice_header = in_one_file[0] if in_one_file else sources[0]
    # Readers go by the distance of slices where it is given, else by their thickness; the two differ when slices
    # overlap or leave gaps.
    measures = hd.PixelMeasuresSequence(
        pixel_spacing=slice_header.PixelSpacing,
        slice_thickness=float(slice_header.get("SliceThickness") or distance),
        spacing_between_slices=distance,
    )
    if in_one_file:
        frames[frame_order(in_one_file)] = frames.copy()
        _share(sources[0], slice_header.ImageOrientationPatient, measures)
    segmentation = _build(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, name, origin) for number, (name, _) in enumerate(present, 1)],
        series_instance_uid=hd.UID(),
        series_number=300,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="VQ-Seg for MONAI Label",
        manufacturer_model_name="VQ-Seg",
        software_versions=origin.model_version or "manual",
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="Segmentation corrected by an annotator" if origin.model_version else "Segmentation",
        content_creator_name=_person_name(origin.creator),
        series_description="VQ-Seg label",
        pixel_measures=measures,
    )
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of people and structures in any script
    with new_file(path) as temporary:
        segmentation.save_as(temporary)


def _build(**parts: Any) -> hd.seg.Segmentation:
    with warnings.catch_warnings():
        # The patient's name is copied as the PACS has it, be it one word.
        warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
        return hd.seg.Segmentation(**parts)


def _source(header: Dataset, distance: float) -> Dataset:
    """`header` of a slice, with what anonymisers took out of it: the file's own header still names class and instance;
    other identities are made up, the same for all slices of a series and at every call."""
    header.SOPClassUID = header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = header.get("SOPInstanceUID") or header.file_meta.MediaStorageSOPInstanceUID
    identities = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    known = [str(header.get(keyword) or "") for keyword in identities]
    for keyword, value in zip(identities, known, strict=True):
        setattr(header, keyword, value or generate_uid(entropy_srcs=[keyword, *known]))
    header.SliceThickness = header.get("SliceThickness") or distance
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def _share(header: Dataset, orientation: Any, measures: hd.PixelMeasuresSequence) -> None:
    """Say once for all frames what an enhanced file may say of each: highdicom (0.22) looks nowhere else."""
    if not header.get("SharedFunctionalGroupsSequence"):
        header.SharedFunctionalGroupsSequence = [Dataset()]
    shared = header.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], measures
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = orientation


def segment_names(dataset: Dataset) -> dict[int, str]:
    """Number -> name of the segments of a SEG."""
    return {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.SegmentSequence}


def model_of(dataset: Dataset) -> str | None:
    """Version of the model whose mask was corrected; none in a SEG of other programs than `write_segmentation`."""
    for segment in dataset.get("SegmentSequence") or []:
        for algorithm in segment.get("SegmentationAlgorithmIdentificationSequence") or []:
            if algorithm.get("AlgorithmName") == _ALGORITHM:
                return str(algorithm.get("AlgorithmVersion") or "") or None
    return None


def decode_segmentation(path: Path, grid: Grid, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """Read a SEG that belongs to an image with `grid`; returns uint8 (X, Y, Z) in the axis order of the image's file.

    Segments are matched by name. Where segments overlap the structure with the highest value is kept, so that a tumour
    lies on top of its organ. Raises `LabelError` for an unknown structure and for frames that lie beside the grid.
    """
    dataset = pydicom.dcmread(path)
    names = segment_names(dataset)
    unknown = [name for name in names.values() if name not in labels]
    if unknown:
        raise LabelError(path, f"unknown structure {unknown[0]!r}; known: {', '.join(labels)}")
    kind = str(dataset.SegmentationType)
    if kind not in ("BINARY", "FRACTIONAL"):
        raise LabelError(path, f"it is a SEG of type {kind}; BINARY and FRACTIONAL can be read")
    least = 1 if kind == "BINARY" else int(dataset.MaximumFractionalValue) / 2
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns) >= least
    mask = np.zeros(grid.shape, np.uint8)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if not frame.any():
            continue
        number = int(_group(dataset, groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        place = _voxels_of(path, dataset, groups, grid, np.argwhere(frame))
        mask[place] = np.maximum(mask[place], labels[names[number]])
    return mask


def _voxels_of(
    path: Path, dataset: Dataset, groups: Dataset, grid: Grid, pixels: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Indices into the grid of the `pixels` (n, 2), row and column, of a frame (DICOM PS3.3 C.7.6.2.1.1)."""
    origin = np.array(_group(dataset, groups, "PlanePositionSequence").ImagePositionPatient, np.float64)
    along = np.array(_group(dataset, groups, "PlaneOrientationSequence").ImageOrientationPatient, np.float64)
    spacing = np.array(_group(dataset, groups, "PixelMeasuresSequence").PixelSpacing, np.float64)
    # The first direction runs along a row, so with the column's number; PixelSpacing begins with the rows' distance.
    step_row, step_column = along[3:] * spacing[0], along[:3] * spacing[1]
    points = origin + pixels[:, :1] * step_row + pixels[:, 1:] * step_column
    to_voxels = np.linalg.inv(grid.affine) @ LPS_TO_RAS
    voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    nearest = np.rint(voxels).astype(int)
    if np.abs(voxels - nearest).max() > _OFF_GRID or (nearest < 0).any() or (nearest >= grid.shape).any():
        raise LabelError(path, "it lies elsewhere in space than the image, or on other voxels")
    return nearest[:, 0], nearest[:, 1], nearest[:, 2]


def _group(dataset: Dataset, groups: Dataset, name: str) -> Dataset:
    """A functional group of one frame, or what all frames share."""
    owner = groups if name in groups else dataset.SharedFunctionalGroupsSequence[0]
    return owner[name].value[0]


def _description(number: int, name: str, origin: Origin) -> hd.seg.SegmentDescription:
    algorithm = None
    if origin.model_version is not None:
        algorithm = hd.AlgorithmIdentificationSequence(
            name=_ALGORITHM, version=origin.model_version, family=_ARTIFICIAL_INTELLIGENCE
        )
    abnormal = _ABNORMAL.get(name.lower())
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=_ABNORMALITY if abnormal else _ANATOMY,
        segmented_property_type=abnormal or _anatomy(name),
        algorithm_type="SEMIAUTOMATIC" if algorithm else "MANUAL",
        algorithm_identification=algorithm,
    )


def _anatomy(name: str) -> Code:
    """SNOMED's code for a structure that pydicom's dictionary knows by this name, else "anatomical structure"."""
    keyword = "".join(word.capitalize() for word in name.replace("_", " ").split())
    if name.lower() in _QUALIFIERS:
        return _ANATOMY
    try:
        found = getattr(codes.SCT, keyword)
    except (AttributeError, RuntimeError):
        return _ANATOMY
    return found if isinstance(found, Code) else _ANATOMY


def _person_name(name: str) -> str:
    """A DICOM person name: up to 64 characters, without the characters that separate its parts."""
    return "".join(" " if c in "\\=^" or not c.isprintable() else c for c in name).strip()[:64] or "unknown"
