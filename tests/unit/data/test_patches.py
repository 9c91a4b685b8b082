"""What a step draws depends on its number alone, and every study has its turn."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TINY_2D, tiny_config, write_studies
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqseg.data.patches import PatchDataset, StepSampler, crop, draw_start, patch_loader
from vqseg.data.preparation import PreparedStudy, prepare_study
from vqseg.data.studies import Study

quick = settings(max_examples=40, deadline=None)
shapes = st.tuples(*[st.integers(1, 12)] * 3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedStudy]:
    folder = tmp_path_factory.mktemp("prepared")
    return [prepare_study(study, tiny_config().data, folder / "cache") for study in write_studies(folder, 4)]


def padded(array: NDArray, start: NDArray, size: tuple[int, ...], fill: float) -> NDArray:
    """The patch voxel by voxel, as a slow reference."""
    patch = np.full(size, fill, array.dtype)
    for place in np.ndindex(size):
        source = np.array(place) + start
        if (source >= 0).all() and (source < array.shape).all():
            patch[place] = array[tuple(source)]
    return patch


@quick
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12), st.integers(0, 20))
def test_sampling_continues_where_it_stopped(count: int, batch: int, start: int, more: int) -> None:
    whole = list(StepSampler(count, batch, 0, start + more, 7, "labelled"))
    tail = StepSampler(count, batch, start, start + more, 7, "labelled")
    assert list(tail) == whole[start:]
    assert len(tail) == more


@quick
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_every_study_is_drawn_once_a_cycle(count: int, batch: int, cycles: int) -> None:
    drawn = [pair for step in StepSampler(count, batch, 0, count * cycles, 7) for pair in step]
    for first in range(0, len(drawn), count):
        assert sorted(index for index, _ in drawn[first : first + count]) == list(range(count))
    assert len({seed for _, seed in drawn}) == len(drawn)


def test_orders_differ_between_cycles_sets_and_seeds() -> None:
    orders = {
        tuple(index for step in StepSampler(20, 4, 5 * cycle, 5 * cycle + 5, seed, name) for index, _ in step)
        for cycle in range(2)
        for seed in range(2)
        for name in ("labelled", "unlabelled")
    }
    assert len(orders) == 8


@quick
@given(shapes, shapes, st.integers(0, 1000))
def test_crop_equals_its_definition(shape: tuple[int, ...], size: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    array = generator.normal(size=shape).astype(np.float16)
    start = draw_start(shape, size, generator)
    # Inside where the volume is larger, the volume in the patch's middle where it is smaller.
    for room, first in zip(np.array(shape) - size, start, strict=True):
        assert 0 <= first <= room if room >= 0 else first == room // 2
    np.testing.assert_array_equal(crop(array, start, size, fill=5), padded(array, start, size, 5))
    patch = crop(array, start, size)
    np.testing.assert_array_equal(patch, padded(array, start, size, patch.min()))


@quick
@given(shapes, shapes, st.integers(0, 1000))
def test_patch_around_foreground_holds_it(shape: tuple[int, ...], size: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    place = [int(generator.integers(n)) for n in shape]
    foreground = np.array([[1, *place]], np.int32)
    hits = 0
    for draw in range(20):
        start = draw_start(shape, size, np.random.default_rng((seed, draw)), foreground)
        hits += bool(((start <= place) & (np.array(place) < start + size)).all())
    # Half of the draws are centred on it; that none of 20 is has a probability of 1e-6.
    assert hits > 0


def test_small_structures_are_seen_as_often_as_large_ones() -> None:
    large = np.column_stack([np.full(500, 1), np.random.default_rng(0).integers(0, 10, (500, 3))])
    foreground = np.concatenate([large, [[2, 50, 50, 50]]]).astype(np.int32)
    starts = [draw_start((60, 60, 60), (4, 4, 4), np.random.default_rng(seed), foreground) for seed in range(400)]
    around = sum(bool((np.abs(start + 2 - 50) <= 2).all()) for start in starts)
    assert 0.17 < around / 400 < 0.33


def test_labelled_patches_hold_image_and_label_of_one_place(prepared: list[PreparedStudy]) -> None:
    data = tiny_config().data
    patches = PatchDataset(prepared, data, labelled=True)
    for seed in range(10):
        patch = patches[seed % 4, seed]
        assert patch.label is not None
        assert patch.image.shape == (1, 8, 8, 8)
        assert (patch.image.dtype, patch.label.dtype) == (torch.float32, torch.int64)
        # The balls are bright: their voxels are brighter than all that is not a ball.
        inside = patch.label > 0
        if inside.any() and not inside.all():
            assert patch.image[0][inside].min() > patch.image[0][~inside].max()
        again = patches[seed % 4, seed]
        assert torch.equal(again.image, patch.image)


def test_unlabelled_patches_never_touch_a_label(prepared: list[PreparedStudy]) -> None:
    nowhere = Path("nowhere")
    without = [PreparedStudy(Study(p.study.id, p.study.image), p.image, nowhere, nowhere) for p in prepared]
    assert PatchDataset(without, tiny_config().data, labelled=False)[0, 1].label is None


def test_2d_patches_are_slices(prepared: list[PreparedStudy]) -> None:
    patch = PatchDataset(prepared, tiny_config(TINY_2D).data, labelled=True)[0, 3]
    assert patch.label is not None
    assert (patch.image.shape, patch.label.shape) == ((1, 8, 8), (8, 8))


def test_only_the_patch_is_read(tmp_path: Path) -> None:
    shape = (600, 600, 600)
    np.lib.format.open_memmap(tmp_path / "i.npy", mode="w+", dtype=np.float16, shape=shape).flush()  # sparse: no disk
    large = PreparedStudy(Study("large", tmp_path / "i.nii"), tmp_path / "i.npy", None, None)
    tracemalloc.start()
    try:
        PatchDataset([large], tiny_config().data, labelled=False)[0, 0]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_loader_repeats_a_short_set_and_continues(prepared: list[PreparedStudy]) -> None:
    data = tiny_config().data
    whole = list(patch_loader(prepared[:2], data, 3, range(6), 0, labelled=True))
    tail = list(patch_loader(prepared[:2], data, 3, range(4, 6), 0, labelled=True))
    assert [batch.image.shape for batch in whole] == [(3, 1, 8, 8, 8)] * 6
    for one, other in zip(whole[4:], tail, strict=True):
        assert one.label is not None
        assert other.label is not None
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)
