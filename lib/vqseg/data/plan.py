"""Settings that follow from the images: working spacing, slice axis and patch size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vqseg.config import Config, checked
from vqseg.data.grid import Grid
from vqseg.networks.foundation import read_architecture

__all__ = ["more_than_one_element", "plan"]


def plan(config: Config, grids: Sequence[Grid], *, quantized: bool = True) -> Config:
    """Replace "median" spacing, no slice axis and no patch size by what the images' grids suggest.

    In 2D the slices are those across the axis with the coarsest median spacing, and they keep their own distance.
    A patch is as large as the median image unless that exceeds `data.patch_voxels`; then its longest sides shrink.
    Where the settings leave it open whether the network has a codebook, `quantized` says so.
    """
    data, foundation = config.data, config.foundation
    spacings = np.array([grid.spacing for grid in grids])
    median = np.median(spacings, axis=0)
    slice_axis = data.slice_axis
    if data.spatial_dims == 2 and slice_axis is None:
        slice_axis = int(np.argmax(median))
    model = config.model
    if model.quantized is None:
        model = model.model_copy(update={"quantized": quantized})
    if model.pretrained and model.dinov2 is None:
        model = model.model_copy(update={"dinov2": read_architecture(model.pretrained)})
    if data.spacing == "median":
        spacing = np.round(median, 4)
    elif data.spacing == "native":
        spacing = np.zeros(3)
    else:
        spacing = np.array(data.spacing)
    if slice_axis is not None and data.spacing == "median":
        spacing[slice_axis] = 0
    patch_size = data.patch_size
    if patch_size is None:
        factor = np.divide(spacings, spacing, out=np.ones_like(spacings), where=spacing > 0)
        shape = np.median([grid.canonical_shape for grid in grids] * factor, axis=0)
        if slice_axis is not None:
            shape = np.delete(shape, slice_axis)
        patch_size = _bounded_patch(shape, data.patch_voxels, model.stride)
    planned = data.model_copy(
        update={"slice_axis": slice_axis, "spacing": tuple(float(s) for s in spacing), "patch_size": patch_size}
    )
    if foundation.in_use and foundation.slice_axis is None:
        # Rounded, for an oblique grid has its spacing from a rotation.
        worked_on = np.round(np.where(spacing > 0, spacing, median), 3)
        # Of axes that are equally coarse the last: most scans are read in axial slices.
        coarsest = 2 - int(np.argmax(worked_on[::-1]))
        axis = coarsest if slice_axis is None else slice_axis
        foundation = foundation.model_copy(update={"slice_axis": axis})
    sections = {"data": planned, "model": model, "foundation": foundation}
    # Checked again: what was planned may not fit what was given.
    return checked(config.model_dump() | {name: section.model_dump() for name, section in sections.items()})


def more_than_one_element(size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """`size`, or twice as long on its first axis where the coarsest level would be one element, which has no norm."""
    return size if max(size) > stride else (2 * stride, *size[1:])


def _bounded_patch(shape: np.ndarray, bound: int, multiple: int) -> tuple[int, ...]:
    """Multiples of `multiple` around `shape`, the longest side shrunk until the patch has at most `bound` voxels."""
    # Resampling rounds to whole voxels, too.
    patch = np.maximum(np.ceil(np.round(shape) / multiple).astype(int), 1) * multiple
    while patch.prod() > bound and patch.max() > multiple:
        patch[np.argmax(patch)] -= multiple
    return more_than_one_element(tuple(int(size) for size in patch), multiple)
