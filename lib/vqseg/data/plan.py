"""Settings that follow from the images: working spacing, slice axis and patch size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vqseg.config import Config
from vqseg.data.grid import Grid

__all__ = ["more_than_one_element", "plan"]


def plan(config: Config, grids: Sequence[Grid]) -> Config:
    """Replace "median" spacing, no slice axis and no patch size by what the images' grids suggest.

    In 2D the slices are those across the axis with the coarsest median spacing, and they keep their own distance.
    A patch is as large as the median image unless that exceeds `data.patch_voxels`; then its longest sides shrink.
    """
    data = config.data
    spacings = np.array([grid.spacing for grid in grids])
    median = np.median(spacings, axis=0)
    slice_axis = data.slice_axis
    if data.spatial_dims == 2 and slice_axis is None:
        slice_axis = int(np.argmax(median))
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
        patch_size = _bounded_patch(shape, data.patch_voxels, config.model.stride)
    planned = data.model_copy(
        update={"slice_axis": slice_axis, "spacing": tuple(float(s) for s in spacing), "patch_size": patch_size}
    )
    return config.model_copy(update={"data": planned})


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
