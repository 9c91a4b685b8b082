"""Patches of prepared studies, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vqseg.config import Data
from vqseg.data.guidance import Guidance, sample_guide
from vqseg.data.preparation import PreparedStudy
from vqseg.randomness import numpy_generator, seed_for

__all__ = ["Batch", "PatchDataset", "StepSampler", "patch_loader"]

# Share of labelled patches that are centred on a voxel of a random class, so that small structures are seen.
_FOREGROUND_SHARE = 0.5

# Arrays that stay open: opening one takes longer than reading a patch of it, and each holds a file descriptor.
_OPEN_ARRAYS = 256


@dataclass(frozen=True)
class Batch:
    """`image` float32 (B, 1, *spatial); `label` int64 (B, *spatial), none for unlabelled patches; `guide` float32
    (B, C, *grid), the foundation model's features, or none."""

    image: Tensor
    label: Tensor | None
    guide: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        label, guide = (array if array is None else array.to(device) for array in (self.label, self.guide))
        return Batch(self.image.to(device), label, guide)


class PatchDataset(Dataset):
    """One random patch of a study for each (index, seed); reads only the patch from disk."""

    def __init__(
        self, studies: Sequence[PreparedStudy], data: Data, guidance: Guidance | None = None, *, labelled: bool
    ) -> None:
        assert data.patch_size is not None, "the configuration has not been planned"
        self.studies, self.labelled, self.slice_axis = list(studies), labelled, data.slice_axis
        self.size, self.guidance = list(data.patch_size), guidance
        if data.spatial_dims == 2:
            assert data.slice_axis is not None
            self.size.insert(data.slice_axis, 1)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        index, seed = key
        study, generator = self.studies[index], np.random.default_rng(seed)
        image = _opened(study.image)
        if not self.labelled:
            start = draw_start(image.shape, self.size, generator)
            return Batch(self._image(image, start), None, self._guide(study, image.shape, start))
        assert study.label is not None
        assert study.foreground is not None
        foreground = _opened(study.foreground)
        start = draw_start(image.shape, self.size, generator, foreground)
        mask = _opened(study.label)
        label = self._tensor(crop(mask, start, self.size, fill=0)).long()
        return Batch(self._image(image, start), label, self._guide(study, image.shape, start))

    def _image(self, image: NDArray, start: NDArray[np.int64]) -> Tensor:
        return self._tensor(crop(image, start, self.size)).float()[None]

    def _guide(self, study: PreparedStudy, shape: tuple[int, ...], start: NDArray[np.int64]) -> Tensor | None:
        if self.guidance is None:
            return None
        assert study.guide is not None
        grid, axis = list(self.guidance.grid), self.guidance.slice_axis
        if self.slice_axis is not None:
            grid.insert(axis, 1)
        features = _opened(study.guide)
        sampled = sample_guide(features, shape, start, self.size, grid, axis)
        return sampled if self.slice_axis is None else sampled.squeeze(axis + 1)

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array if self.slice_axis is None else array.squeeze(self.slice_axis))


class StepSampler(Sampler[list[tuple[int, int]]]):
    """For each step from `start` to `stop` the (index, seed) pairs of its batch.

    A set is gone through in a new order again and again, so a short labelled set is repeated to the length of the
    unlabelled one. What a step draws depends on the step's number alone.
    """

    def __init__(self, count: int, batch: int, start: int, stop: int, *key: int | str) -> None:
        self.count, self.batch, self.start, self.stop, self.key = count, batch, start, stop, key

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, NDArray] = {}
        for step in range(self.start, self.stop):
            drawn = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                cycle, place = divmod(position, self.count)
                if cycle not in orders:
                    orders = {cycle: numpy_generator(*self.key, "order", cycle).permutation(self.count)}
                drawn.append((int(orders[cycle][place]), seed_for(*self.key, "patch", position)))
            yield drawn


def patch_loader(
    studies: Sequence[PreparedStudy],
    data: Data,
    batch: int,
    steps: range,
    seed: int,
    guidance: Guidance | None = None,
    *,
    labelled: bool,
) -> Iterator[Batch]:
    """One batch for each of `steps`, with the foundation model's features where there is `guidance`."""
    key = (seed, "labelled" if labelled else "unlabelled")
    sampler = StepSampler(len(studies), batch, steps.start, steps.stop, *key)
    dataset = PatchDataset(studies, data, guidance, labelled=labelled)
    return iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=_collate))


@lru_cache(_OPEN_ARRAYS)
def _opened(file: Path) -> NDArray:
    """A prepared array, which is called by the hash of what it was made of and never changes."""
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def draw_start(
    shape: Sequence[int], size: Sequence[int], generator: np.random.Generator, foreground: NDArray | None = None
) -> NDArray[np.int64]:
    """Start of a patch: anywhere inside, or around a foreground voxel; centred where the volume is smaller."""
    room = np.array(shape) - np.array(size)
    start = generator.integers(0, np.maximum(room, 0) + 1)
    around_foreground = generator.random() < _FOREGROUND_SHARE
    if foreground is not None and len(foreground) and around_foreground:
        rows = foreground[foreground[:, 0] == generator.choice(np.unique(foreground[:, 0]))]
        centre = rows[generator.integers(len(rows)), 1:]
        start = np.clip(centre - np.array(size) // 2, 0, np.maximum(room, 0))
    return np.where(room < 0, room // 2, start)


def crop(
    array: NDArray, start: Sequence[int] | NDArray[np.int64], size: Sequence[int], fill: float | None = None
) -> NDArray:
    """Patch of `size` that begins at `start`; outside the array it holds `fill`, by default the patch's minimum."""
    begin = np.maximum(start, 0)
    end = np.minimum(np.array(start) + size, array.shape)
    inside = np.array(array[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))])
    if inside.shape == tuple(size):
        return inside
    before = begin - np.array(start)
    after = np.array(size) - inside.shape - before
    value = inside.min() if fill is None else fill
    return np.pad(inside, np.column_stack([before, after]), constant_values=value)


def _collate(patches: list[Batch]) -> Batch:
    labels = [patch.label for patch in patches if patch.label is not None]
    guides = [patch.guide for patch in patches if patch.guide is not None]
    return Batch(
        torch.stack([patch.image for patch in patches]),
        torch.stack(labels) if labels else None,
        torch.stack(guides) if guides else None,
    )
