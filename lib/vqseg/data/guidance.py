"""Features of the foundation model, computed once a study, kept in the cache, and cut out for each patch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vqseg.config import Config
from vqseg.data.preparation import PreparedStudy
from vqseg.files import new_file
from vqseg.networks.foundation import FoundationModel

__all__ = ["Guidance", "guide_study", "plan_guidance", "sample_guide"]

_SLICES_AT_A_TIME = 8


@dataclass(frozen=True)
class Guidance:
    """Where a training patch is compared with the foundation model: at the cells of a `grid` over the patch, whose
    slices lie along `slice_axis` of the volume; the features have `channels`."""

    grid: tuple[int, ...]
    slice_axis: int
    channels: int


def plan_guidance(config: Config, model: FoundationModel) -> Guidance:
    """As many cells as the finest quantised level has, and within a slice not more than the foundation model tells
    apart."""
    size, axis = config.data.patch_size, config.foundation.slice_axis
    assert size is not None, "the configuration has not been planned"
    assert axis is not None, "the configuration has not been planned"
    cells = [max(1, length // config.model.finest_stride) for length in size]
    most = max(model.grid((1, 1), config.foundation.size))
    across = axis if config.data.spatial_dims == 3 else None
    grid = (count if index == across else min(count, most) for index, count in enumerate(cells))
    return Guidance(tuple(grid), axis, model.channels)


def guide_study(prepared: PreparedStudy, model: FoundationModel, config: Config, cache: Path) -> PreparedStudy:
    """The study with its features, float16 (slices, C, h, w) in a memory-mappable file, unless the cache has them."""
    foundation = config.foundation
    key = (prepared.image.name, model.identity, foundation.size, foundation.slice_axis)
    path = cache / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.guide.npy"
    if not path.exists():
        assert foundation.slice_axis is not None
        image = np.moveaxis(np.load(prepared.image, mmap_mode="r", allow_pickle=False), foundation.slice_axis, 0)
        low, high = float(image.min()), float(image.max())
        slices = torch.from_numpy((np.asarray(image, np.float32) - low) / max(high - low, 1e-6))
        features = [model.features(part, foundation.size).cpu().half() for part in slices.split(_SLICES_AT_A_TIME)]
        with new_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, torch.cat(features).numpy(), allow_pickle=False)
    return replace(prepared, guide=path)


def sample_guide(
    features: NDArray[np.float16],
    shape: Sequence[int],
    start: Sequence[int] | NDArray[np.int64],
    size: Sequence[int],
    grid: Sequence[int],
    slice_axis: int,
) -> Tensor:
    """Features (C, *grid) at the centres of the cells of a patch; positions outside the image take the nearest.

    `features` (slices, C, h, w) of an image of `shape`; the patch of `size` begins at voxel `start`; these and `grid`
    have three axes, and the slices lie along `slice_axis`.
    """
    centres = [a + (np.arange(cells) + 0.5) * n / cells for a, n, cells in zip(start, size, grid, strict=True)]
    slices = np.clip(np.floor(centres[slice_axis]), 0, shape[slice_axis] - 1).astype(int)
    inplane = [axis for axis in range(3) if axis != slice_axis]
    # In `grid_sample`'s coordinates, -1..1 from edge to edge, last axis first.
    rows, columns = (torch.from_numpy(2 * centres[axis] / shape[axis] - 1).float() for axis in inplane)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
    chosen = torch.from_numpy(np.asarray(features[slices], np.float32))
    sampled = functional.grid_sample(
        chosen, place.expand(len(chosen), -1, -1, -1), padding_mode="border", align_corners=False
    )
    return sampled.transpose(0, 1).movedim(1, slice_axis + 1)
