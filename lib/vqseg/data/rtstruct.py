"""Contours of a radiotherapy structure set (RTSTRUCT) as a mask, by the names of its regions of interest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from skimage.draw import polygon

from vqseg.data.grid import LPS_TO_RAS, Grid
from vqseg.errors import LabelError

__all__ = ["decode_structure_set", "region_names"]

# How far from the middle of a slice a contour may lie, in slices; and how far its points may leave their plane.
_OFF_SLICE = 0.4
_OFF_PLANE = 0.1


def region_names(dataset: Dataset) -> dict[int, str]:
    """Number -> name of the regions of interest."""
    return {int(item.ROINumber): str(item.ROIName) for item in dataset.StructureSetROISequence}


def decode_structure_set(path: Path, grid: Grid, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """Fill the contours of the structures in `labels`; returns uint8 (X, Y, Z) in the axis order of the image's file.

    A voxel belongs to a structure when its centre lies within an odd number of its contours on that slice, so a contour
    within another one is a hole. Other regions of the set (couch, body, ...) are left out. Where structures overlap the
    one with the highest value is kept. Raises `LabelError` when none is known or a contour lies beside the image.
    """
    dataset = pydicom.dcmread(path)
    names = region_names(dataset)
    if not set(names.values()) & set(labels):
        raise LabelError(
            path, f"it holds {', '.join(names.values()) or 'nothing'}; known structures: {', '.join(labels)}"
        )
    to_voxels = np.linalg.inv(grid.affine) @ LPS_TO_RAS
    mask = np.zeros(grid.shape, np.uint8)
    for region in dataset.get("ROIContourSequence", []):
        name = names.get(int(region.ReferencedROINumber), "")
        if name not in labels:
            continue
        inside = np.zeros(grid.shape, bool)
        for contour in region.get("ContourSequence", []):
            if contour.ContourGeometricType not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                continue  # points and open lines enclose nothing
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
            _fill(inside, points @ to_voxels[:3, :3].T + to_voxels[:3, 3], path)
        mask[inside] = np.maximum(mask[inside], labels[name])
    return mask


def _fill(inside: NDArray[np.bool_], points: NDArray, path: Path) -> None:
    """Turn over the voxels whose centre lies within a closed contour of `points` (n, 3) in voxel indices."""
    axis = int(np.ptp(points, axis=0).argmin())
    level = float(points[:, axis].mean())
    index = round(level)
    if np.ptp(points[:, axis]) > _OFF_PLANE or abs(level - index) > _OFF_SLICE:
        raise LabelError(path, "a contour does not lie in a slice of the image")
    if not all(points.max(axis=0) > -0.5) or not all(points.min(axis=0) < np.array(inside.shape) - 0.5):
        raise LabelError(path, "a contour lies outside the image")
    section = np.moveaxis(inside, axis, 0)[index]
    across, down = np.delete(points, axis, axis=1).T
    rows, columns = polygon(across, down, section.shape)
    section[rows, columns] ^= True
