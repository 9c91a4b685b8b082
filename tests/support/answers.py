"""Masks as a server or a PACS answers with them."""

from __future__ import annotations

import io
from typing import Any

import nrrd
import numpy as np
import pydicom


def read_nrrd(content: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Header and voxels of an NRRD file."""
    header = nrrd.read_header(io.BytesIO(content))
    return header, nrrd.read_data(header, io.BytesIO(content[content.index(b"\n\n") + 2 :]))


def voxel_counts(segmentation: pydicom.Dataset) -> dict[str, int]:
    """Voxels of each structure in a DICOM SEG, by name."""
    names = {segment.SegmentNumber: str(segment.SegmentLabel) for segment in segmentation.SegmentSequence}
    counts = dict.fromkeys(names.values(), 0)
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        counts[names[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]] += int(frame.sum())
    return counts
