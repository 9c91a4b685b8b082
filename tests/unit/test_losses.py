"""The terms of the loss against their formulas, and who receives which gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from vqseg.losses import alignment_loss, codebook_loss, reconstruction_loss, segmentation_loss

quick = settings(max_examples=20, deadline=None)
KINDS = ("dice_ce", "ce")


def draw(seed: int, spatial: tuple[int, ...] = (4, 5, 3), classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *spatial, generator=generator)
    target = torch.randint(classes, (2, *spatial), generator=generator)
    return logits, target, torch.rand(target.shape, generator=generator) < 0.6


@quick
@given(st.integers(0, 1000), st.sampled_from([(4, 5), (4, 5, 3)]))
def test_segmentation_equals_its_formula(seed: int, spatial: tuple[int, ...]) -> None:
    logits, target, _ = draw(seed, spatial)
    cross_entropy = functional.cross_entropy(logits, target)
    p = logits.softmax(1)
    dice = [2 * p[:, c][target == c].sum() / (p[:, c].sum() + (target == c).sum()) for c in (1, 2)]
    assert segmentation_loss(logits, target, kind="ce").item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    expected = cross_entropy + 1 - sum(dice) / 2
    assert segmentation_loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-3)


@quick
@given(st.integers(0, 1000), st.sampled_from(KINDS))
def test_only_valid_voxels_count(seed: int, kind: str) -> None:
    logits, target, valid = draw(seed)
    other_logits, other_target, _ = draw(seed + 1)
    mixed_logits = torch.where(valid[:, None], logits, other_logits)
    mixed_target = torch.where(valid, target, other_target)
    one = segmentation_loss(logits, target, valid, kind=kind)
    assert segmentation_loss(mixed_logits, mixed_target, valid, kind=kind).item() == pytest.approx(one.item(), rel=1e-5)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(segmentation_loss(logits, target, valid, kind=kind), logits)
    assert not gradient.movedim(1, -1)[~valid].any()
    assert gradient.movedim(1, -1)[valid].any()


@pytest.mark.parametrize("kind", KINDS)
def test_all_voxels_valid_is_no_restriction(kind: str) -> None:
    logits, target, _ = draw(0)
    everywhere = segmentation_loss(logits, target, torch.ones_like(target, dtype=torch.bool), kind=kind)
    assert everywhere.item() == pytest.approx(segmentation_loss(logits, target, kind=kind).item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from_is_no_loss_and_no_gradient(kind: str) -> None:
    logits, target, _ = draw(0)
    logits.requires_grad_()
    loss = segmentation_loss(logits, target, torch.zeros_like(target, dtype=torch.bool), kind=kind)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all()
    assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_right_is_better_than_wrong(kind: str) -> None:
    _, target, _ = draw(0)
    right = functional.one_hot(target, 3).movedim(-1, 1) * 20.0
    assert segmentation_loss(right, target, kind=kind).item() == pytest.approx(0, abs=1e-3)
    assert segmentation_loss(right.roll(1, 1), target, kind=kind).item() > 1


def test_uniform_answer_costs_the_logarithm_of_the_classes() -> None:
    _, target, _ = draw(0)
    assert segmentation_loss(torch.zeros(2, 3, 4, 5, 3), target, kind="ce").item() == pytest.approx(math.log(3))


def test_half_precision_logits_are_summed_in_single() -> None:
    logits, target, _ = draw(0, (32, 32, 32))
    loss = segmentation_loss(logits.bfloat16(), target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(segmentation_loss(logits, target).item(), rel=0.01)


def test_reconstruction_is_the_mean_absolute_error() -> None:
    one, other = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), -0.5)
    assert reconstruction_loss(one, other).item() == 0.5
    assert reconstruction_loss(one.bfloat16(), other).dtype == torch.float32


def test_codebook_term_moves_the_codes_and_commitment_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, codes = (torch.randn(2, 5, 3, generator=generator).requires_grad_() for _ in range(2))
    loss = codebook_loss(tokens, codes, commitment=0.25)
    assert loss.item() == pytest.approx(1.25 * functional.mse_loss(tokens, codes).item(), rel=1e-6)
    for_tokens, for_codes = torch.autograd.grad(loss, (tokens, codes))
    difference = 2 * (tokens - codes).detach() / tokens.numel()
    torch.testing.assert_close(for_codes, -difference)
    torch.testing.assert_close(for_tokens, 0.25 * difference)


def test_balanced_cross_entropy_does_not_depend_on_how_many_voxels_a_class_has() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = logits[:, :, :1, :1, :1].expand(1, 3, 4, 4, 4)
    few, many = torch.zeros(2, 1, 4, 4, 4, dtype=torch.int64)
    few[0, 0, 0, :2], many[0, :2] = 1, 1

    def without_dice(target: torch.Tensor, kind: str) -> torch.Tensor:
        valid = torch.ones_like(target, dtype=torch.bool)
        shared = segmentation_loss(logits, target, valid) - segmentation_loss(logits, target, valid, kind="ce")
        return segmentation_loss(logits, target, valid, kind=kind) - shared

    torch.testing.assert_close(without_dice(few, "dice_balanced_ce"), without_dice(many, "dice_balanced_ce"))
    assert not torch.isclose(without_dice(few, "dice_ce"), without_dice(many, "dice_ce"))
    # Half and half, both are the same.
    torch.testing.assert_close(without_dice(many, "dice_balanced_ce"), without_dice(many, "dice_ce"))
    nothing = segmentation_loss(logits, few, torch.zeros_like(few, dtype=torch.bool), kind="dice_balanced_ce")
    assert bool(nothing.isfinite())


GRIDS: list[tuple[int, ...]] = [(3, 4), (2, 3, 4), (1, 5), (1, 1, 3)]


def draw_features(seed: int, grid: tuple[int, ...], channels: int = 6, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, channels, *grid, generator=generator) for _ in range(2))
    return first, second


def naive_alignment(features: Tensor, guide: Tensor, temperature: float) -> float:
    """The formula of PFA, image by image and position by position, in float64."""
    terms = []
    for f, g in zip(features.double().flatten(2), guide.double().flatten(2), strict=True):
        for i in range(f.shape[1]):
            scores = [functional.cosine_similarity(f[:, i], g[:, j], dim=0) / temperature for j in range(g.shape[1])]
            terms.append(torch.stack(scores).logsumexp(0) - scores[i])
    return float(torch.stack(terms).mean())


@quick
@given(st.integers(0, 1000), st.sampled_from(GRIDS), st.floats(0.05, 2))
def test_alignment_equals_its_formula(seed: int, grid: tuple[int, ...], temperature: float) -> None:
    features, guide = draw_features(seed, grid)
    found = alignment_loss(features, guide, temperature).item()
    assert found == pytest.approx(naive_alignment(features, guide, temperature), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_alignment_vanishes_when_every_position_is_told_apart_as_in_the_guide(grid: tuple[int, ...]) -> None:
    """Positions of the guide at right angles, so that none is like another."""
    count = math.prod(grid)
    guide = torch.eye(count).view(1, count, *grid)
    assert alignment_loss(guide * 3, guide, 0.02).item() == pytest.approx(0, abs=1e-4)
    if count > 1:
        assert alignment_loss(guide.flatten(2).roll(1, 2).view_as(guide), guide, 0.02).item() > 10


@pytest.mark.parametrize("grid", GRIDS)
def test_aligned_features_are_better_than_others_at_a_small_temperature(grid: tuple[int, ...]) -> None:
    other, guide = draw_features(0, grid)
    aligned = alignment_loss(guide, guide, 0.01).item()
    assert aligned < 0.05
    assert aligned < alignment_loss(other, guide, 0.01).item()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_guide_that_is_alike_everywhere_costs_the_logarithm_of_the_positions(grid: tuple[int, ...]) -> None:
    features, guide = draw_features(0, grid)
    alike = guide.flatten(2)[:, :, :1].expand(-1, -1, math.prod(grid)).reshape(guide.shape)
    assert alignment_loss(features, alike, 0.07).item() == pytest.approx(math.log(math.prod(grid)), abs=1e-4)


@quick
@given(st.integers(0, 1000), st.sampled_from(GRIDS), st.floats(1e-3, 1e3))
def test_alignment_knows_neither_the_order_of_positions_nor_the_length_of_features(
    seed: int, grid: tuple[int, ...], scale: float
) -> None:
    features, guide = draw_features(seed, grid)
    expected = alignment_loss(features, guide, 0.1).item()
    order = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(seed))
    moved = [array.flatten(2)[:, :, order].view_as(array) for array in (features, guide)]
    assert alignment_loss(*moved, 0.1).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert alignment_loss(features * scale, guide, 0.1).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert alignment_loss(features, guide * scale, 0.1).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_alignment_of_a_volume_is_the_mean_over_its_slices(axis: int) -> None:
    features, guide = draw_features(0, (2, 3, 4))
    slices = [
        alignment_loss(one[None], other[None], 0.1)
        for image, guiding in zip(features, guide, strict=True)
        for one, other in zip(image.unbind(axis + 1), guiding.unbind(axis + 1), strict=True)
    ]
    found = alignment_loss(features, guide, 0.1, axis)
    torch.testing.assert_close(found, torch.stack(slices).mean())
    assert abs(found.item() - alignment_loss(features, guide, 0.1).item()) > 0.1


def test_images_of_a_batch_are_not_told_apart_from_each_other() -> None:
    features, guide = draw_features(0, (3, 4))
    alone = [alignment_loss(features[i : i + 1], guide[i : i + 1], 0.1) for i in range(2)]
    torch.testing.assert_close(alignment_loss(features, guide, 0.1), torch.stack(alone).mean())


def test_alignment_moves_the_features() -> None:
    """Along its gradient the term falls, also from half precision."""
    features, guide = draw_features(0, (3, 4))
    features.requires_grad_()
    before = alignment_loss(features, guide, 0.1)
    (gradient,) = torch.autograd.grad(before, features)
    assert gradient.isfinite().all()
    assert alignment_loss(features - 0.1 * gradient, guide, 0.1) < before
    assert alignment_loss(features.bfloat16(), guide.bfloat16(), 0.1).dtype == torch.float32


def test_alignment_is_computed_in_single_precision_under_autocast() -> None:
    features, guide = draw_features(0, (8, 8), channels=64)
    expected = alignment_loss(features, guide, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(alignment_loss(features, guide, 0.07), expected, rtol=1e-4, atol=1e-4)
