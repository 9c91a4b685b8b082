"""Review: the labelled study that differs most from what the model sees comes first."""

from __future__ import annotations

import numpy as np
import pytest

from vqseg.active.review import review_pool
from vqseg.active.strategies import make_strategy
from vqseg.active.strategy import Ranking
from vqseg.metrics import dice_by_structure

LABELS = {"left": 1, "right": 2}


def review(dice: dict[str, list[float]]) -> Ranking:
    pool = review_pool({study: np.array(values) for study, values in dice.items()}, tuple(LABELS))
    return make_strategy("disagreement").rank(pool, np.random.default_rng(0))


def test_dice_by_hand() -> None:
    prediction, label = np.array([[[1, 1, 0, 2]]], np.uint8), np.array([[[1, 0, 1, 0]]], np.uint8)
    np.testing.assert_allclose(dice_by_structure(prediction, label, LABELS), [0.5, 0.0])
    np.testing.assert_allclose(dice_by_structure(prediction, prediction, LABELS), [1, 1])
    assert np.isnan(dice_by_structure(prediction, label, {"other": 3})).all()


def test_the_worst_comes_first_and_its_worst_structure_is_named() -> None:
    ranking = review({"good": [0.9, 0.95], "bad": [0.8, 0.2], "half": [np.nan, 0.7]})
    assert ranking.ids == ["bad", "half", "good"]
    assert [one.score for one in ranking] == pytest.approx([0.5, 0.3, 0.075])
    assert ranking[0].parts[0].name == "right"
    assert "right: Dice 0.200" in ranking[0].reason


def test_equal_studies_are_ordered_by_id_and_empty_ones_come_last() -> None:
    ranking = review({"b": [0.5, 0.5], "a": [0.5, 0.5], "0 empty": [np.nan, np.nan]})
    assert ranking.ids == ["a", "b", "0 empty"]
    assert ranking[2].score == -np.inf
    assert "cannot be scored" in ranking[2].reason


def test_a_pool_of_none() -> None:
    assert review({}).ids == []
