"""Uncertainty of voxels and structures: values worked out by hand, and laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqseg.active.uncertainty import (
    mean_by_structure,
    mutual_information,
    predictive_entropy,
    share_of_classes,
)

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def answers(seed: int, draws: int = 5, classes: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(draws, 2, classes, 4, 5, generator=generator, dtype=torch.float64)).softmax(2)


@pytest.mark.parametrize("classes", [2, 4])
def test_entropy_is_0_when_sure_and_ln_c_when_not(classes: int) -> None:
    sure = torch.eye(classes).view(1, classes, classes)
    torch.testing.assert_close(predictive_entropy(sure), torch.zeros(1, classes))
    unsure = torch.full((2, classes, 3, 4), 1 / classes)
    torch.testing.assert_close(predictive_entropy(unsure), torch.full((2, 3, 4), math.log(classes)))


def test_two_sure_answers_that_contradict_each_other_disagree_by_ln_2() -> None:
    draws = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 2, 1)
    torch.testing.assert_close(mutual_information(draws), torch.tensor([[math.log(2)]]))


@quick
@given(seeds)
def test_unsure_answers_that_agree_do_not_disagree(seed: int) -> None:
    same = answers(seed, draws=1).expand(4, -1, -1, -1, -1)
    none = torch.zeros(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(mutual_information(same), none, atol=1e-12, rtol=0)


@quick
@given(seeds)
def test_disagreement_is_part_of_the_entropy(seed: int) -> None:
    draws = answers(seed)
    disagreement = mutual_information(draws)
    assert (disagreement >= 0).all()
    assert (disagreement <= predictive_entropy(draws.mean(0)) + 1e-12).all()
    torch.testing.assert_close(mutual_information(draws.flip(0)), disagreement)
    torch.testing.assert_close(mutual_information(draws.flip(2)), disagreement)


@quick
@given(seeds)
def test_the_classes_share_the_mean_and_the_larger_has_more(seed: int) -> None:
    probability = answers(seed).mean(0)
    values = predictive_entropy(probability)
    shares = share_of_classes(values, probability)
    torch.testing.assert_close(shares.sum(), values.mean())
    torch.testing.assert_close(share_of_classes(values, probability.flip(1)), shares.flip(0))
    # Half of the study without the last class: half as much of it, where the entropy of its parts is mirrored.
    empty = torch.zeros_like(probability)
    empty[:, 0] = 1
    both = torch.cat([probability, empty], 2)
    torch.testing.assert_close(share_of_classes(predictive_entropy(both), both), shares / 2)


def test_each_structure_has_a_mean_of_its_own() -> None:
    probability = torch.tensor(
        [
            [[0.9, 0.2, 0.0, 1.0], [0.1, 0.8, 0.5, 0.0], [0.0, 0.0, 0.5, 0.0]],
            [[1.0, 1.0, 0.9, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0]],
        ]
    )
    values = torch.tensor([[1.0, 3.0, 8.0, 100.0], [100.0, 100.0, 10.0, 100.0]])
    torch.testing.assert_close(mean_by_structure(values, probability), torch.tensor([4.0, 9.0]))


def test_a_structure_that_is_nowhere_has_none() -> None:
    probability = torch.stack([torch.full((2, 3, 3), 0.97), torch.full((2, 3, 3), 0.03)], 1)
    assert mean_by_structure(torch.ones(2, 3, 3), probability).isnan().all()
    assert mean_by_structure(torch.ones(2, 3, 3), probability, threshold=0.02).tolist() == [1.0]
