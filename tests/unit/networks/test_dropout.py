"""Feature dropout: whole channels, in the images that were chosen and in no other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from vqseg.networks.dropout import draw_kept_channels, drop_channels

quick = settings(max_examples=25, deadline=None)
rates = st.floats(0, 0.95)
LEVELS = {2: [(3, 8, 6), (5, 4, 3)], 3: [(3, 4, 6, 2), (5, 2, 3, 1)]}


def draw_maps(dims: int, count: int = 4, seed: int = 0) -> list[Tensor]:
    """Features without a zero, of two levels."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator).add_(10) for shape in LEVELS[dims]]


def drop(maps: list[Tensor], rows: Tensor, rate: float, seed: int = 0) -> list[Tensor]:
    return drop_channels(maps, rows, rate, torch.Generator().manual_seed(seed))


@quick
@given(st.sampled_from([2, 3]), st.lists(st.booleans(), min_size=4, max_size=4), rates, st.integers(0, 1000))
def test_a_channel_is_dropped_or_kept_as_a_whole(dims: int, chosen: list[bool], rate: float, seed: int) -> None:
    """What is kept is longer by 1 / (1 - rate); images that were not chosen stay as they are, bit for bit."""
    maps, rows = draw_maps(dims, seed=seed), torch.tensor(chosen)
    for before, after in zip(maps, drop(maps, rows, rate, seed), strict=True):
        assert after.shape == before.shape
        assert torch.equal(after[~rows], before[~rows])
        factor = (after / before)[rows].flatten(2)
        dropped = (factor == 0).all(2)
        kept = (factor - 1 / (1 - rate)).abs().amax(2) < 1e-4 / (1 - rate)
        assert bool((dropped ^ kept).all())


@quick
@given(st.sampled_from([2, 3]), st.integers(0, 1000))
def test_rate_zero_is_the_identity(dims: int, seed: int) -> None:
    maps = draw_maps(dims, seed=seed)
    for before, after in zip(maps, drop(maps, torch.ones(4, dtype=torch.bool), 0.0, seed), strict=True):
        assert torch.equal(before, after)


def test_nothing_is_changed_in_place() -> None:
    maps = draw_maps(2)
    before = [features.clone() for features in maps]
    drop(maps, torch.ones(4, dtype=torch.bool), 0.5)
    assert all(torch.equal(one, other) for one, other in zip(maps, before, strict=True))


@quick
@given(st.floats(0.01, 0.95), st.integers(0, 1000))
def test_the_rate_is_the_share_of_dropped_channels(rate: float, seed: int) -> None:
    factor = draw_kept_channels(100, 200, rate, torch.Generator().manual_seed(seed))
    assert binomtest(int((factor == 0).sum()), factor.numel(), rate).pvalue > 1e-6


@quick
@given(st.floats(0, 0.9), st.integers(0, 1000))
def test_the_expectation_is_preserved(rate: float, seed: int) -> None:
    factor = draw_kept_channels(100, 200, rate, torch.Generator().manual_seed(seed))
    deviation = math.sqrt(rate / (1 - rate) / factor.numel())
    assert abs(float(factor.double().mean()) - 1) <= 6 * deviation + 1e-6


def test_images_channels_and_levels_are_drawn_apart() -> None:
    maps = [torch.ones(8, 64, 2, 2) for _ in range(2)]
    dropped = [features[:, :, 0, 0] == 0 for features in drop(maps, torch.ones(8, dtype=torch.bool), 0.5)]
    patterns = {tuple(row.tolist()) for level in dropped for row in level}
    assert len(patterns) == 16


def test_the_draw_follows_the_generator() -> None:
    maps, rows = draw_maps(3), torch.tensor([True, False, True, True])
    first, again, other = (drop(maps, rows, 0.5, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    assert not all(torch.equal(one, same) for one, same in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_stays_and_gradient_passes_through_what_is_kept(dtype: torch.dtype) -> None:
    features = torch.ones(2, 32, 3, 3, dtype=dtype, requires_grad=True)
    (dropped,) = drop([features], torch.tensor([True, False]), 0.5)
    assert dropped.dtype == dtype
    (gradient,) = torch.autograd.grad(dropped.sum(), features)
    assert torch.equal(gradient, dropped.detach())
