"""The terms of the loss against their formulas, and who receives which gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from vqseg.losses import codebook_loss, reconstruction_loss, segmentation_loss

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
