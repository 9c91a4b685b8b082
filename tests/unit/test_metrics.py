"""Laws of the scores."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vqseg.errors import DataError
from vqseg.metrics import ClassScore, dice, score_volume, summarise

LABELS = {"lung": 1, "tumour": 2}
SPACING = (0.7, 1.3, 2.9)
SHAPE = (6, 5, 7)
NAN = ClassScore(math.nan, math.nan, math.nan)

masks = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 2))
spacings = st.tuples(*[st.floats(0.25, 8)] * 3)
scores = st.builds(ClassScore, *[st.floats(0, 100) | st.just(math.nan)] * 3)
quick = settings(max_examples=25, deadline=None)


def values(result: dict[str, ClassScore]) -> NDArray[np.float64]:
    return np.array([astuple(score) for score in result.values()])


def cube(start: tuple[int, int, int], edge: int = 5) -> NDArray[np.uint8]:
    mask = np.zeros((14, 14, 14), np.uint8)
    mask[tuple(slice(first, first + edge) for first in start)] = 1
    return mask


@quick
@given(masks, masks, spacings)
def test_scores_are_symmetric(first: NDArray, second: NDArray, spacing: tuple[float, float, float]) -> None:
    there, back = score_volume(first, second, LABELS, spacing), score_volume(second, first, LABELS, spacing)
    np.testing.assert_allclose(values(there), values(back), rtol=1e-5)


@quick
@given(masks, spacings)
def test_identical_masks_are_perfect(mask: NDArray, spacing: tuple[float, float, float]) -> None:
    for name, score in score_volume(mask, mask, LABELS, spacing).items():
        present = (mask == LABELS[name]).any()
        np.testing.assert_array_equal(astuple(score), (1, 0, 0) if present else astuple(NAN))


@quick
@given(masks, masks, spacings)
def test_ranges(first: NDArray, second: NDArray, spacing: tuple[float, float, float]) -> None:
    diagonal = math.hypot(*(size * step for size, step in zip(SHAPE, spacing, strict=True)))
    for score in score_volume(first, second, LABELS, spacing).values():
        assert math.isnan(score.dice) or 0 <= score.dice <= 1
        assert math.isnan(score.hd95) or 0 <= score.hd95 <= diagonal * (1 + 1e-6)
        assert math.isnan(score.assd) or 0 <= score.assd <= diagonal * (1 + 1e-6)


@quick
@given(masks, masks, st.sampled_from(list(itertools.permutations(range(3)))))
def test_order_of_axes_does_not_matter(first: NDArray, second: NDArray, order: tuple[int, int, int]) -> None:
    turned = score_volume(first.transpose(order), second.transpose(order), LABELS, [SPACING[axis] for axis in order])
    np.testing.assert_allclose(values(turned), values(score_volume(first, second, LABELS, SPACING)), rtol=1e-5)


@quick
@given(masks, masks, st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
def test_padding_does_not_matter(first: NDArray, second: NDArray, width: tuple[tuple[int, int], ...]) -> None:
    first[2, 2, 2:4] = second[3, 2, 2:4] = (1, 2)  # with one mask empty the score is the volume's diagonal, which grows
    padded = score_volume(np.pad(first, width), np.pad(second, width), LABELS, SPACING)
    np.testing.assert_allclose(values(padded), values(score_volume(first, second, LABELS, SPACING)), rtol=1e-5)


@quick
@given(masks, masks, st.floats(0.1, 10))
def test_distances_scale_with_the_voxels(first: NDArray, second: NDArray, factor: float) -> None:
    small = values(score_volume(first, second, LABELS, SPACING))
    large = values(score_volume(first, second, LABELS, [step * factor for step in SPACING]))
    np.testing.assert_allclose(large, small * (1, factor, factor), rtol=1e-4)


@pytest.mark.parametrize("axis", range(3))
@given(spacing=spacings, edge=st.integers(3, 8))
@quick
def test_cube_shifted_by_one_voxel(axis: int, spacing: tuple[float, float, float], edge: int) -> None:
    shifted = np.roll(cube((3, 3, 3), edge), 1, axis)
    score = score_volume(shifted, cube((3, 3, 3), edge), {"cube": 1}, spacing)["cube"]
    assert score.hd95 == pytest.approx(spacing[axis], rel=1e-5)
    assert score.dice == pytest.approx((edge - 1) / edge)
    assert 0 < score.assd < score.hd95 * (1 + 1e-5)


def test_one_empty_mask_scores_worst() -> None:
    for pair in ((cube((3, 3, 3)), cube((3, 3, 3)) * 0), (cube((3, 3, 3)) * 0, cube((3, 3, 3)))):
        score = score_volume(*pair, {"cube": 1}, SPACING)["cube"]
        diagonal = 14 * math.hypot(*SPACING)
        assert astuple(score) == pytest.approx((0, diagonal, diagonal))


@quick
@given(masks, masks, st.integers(1, 2))
def test_dice_agrees_with_score_volume(first: NDArray, second: NDArray, value: int) -> None:
    score = score_volume(first, second, {"class": value}, SPACING)["class"]
    np.testing.assert_array_equal(dice(first, second, value), score.dice)


@pytest.mark.parametrize(
    ("prediction", "spacing", "reason"),
    [
        (np.zeros((4, 4, 4), np.float32), SPACING, "integers"),
        (np.zeros((4, 4), np.uint8), SPACING, "3D"),
        (np.zeros((4, 4, 5), np.uint8), SPACING, "same shape"),
        (np.zeros((4, 4, 4), np.uint8), (1.0, 0.0, 1.0), "positive"),
        (np.zeros((4, 4, 4), np.uint8), (1.0, 1.0), "three"),
    ],
)
def test_unusable_input_is_named(prediction: NDArray, spacing: tuple[float, ...], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        score_volume(prediction, np.zeros((4, 4, 4), np.uint8), LABELS, spacing)


def test_mean_is_over_class_means_and_leaves_out_what_is_not_counted() -> None:
    lung, tumour = ClassScore(1.0, 0.0, 0.0), ClassScore(0.4, 6.0, 3.0)
    summary = summarise({"a": {"lung": lung, "tumour": tumour}, "b": {"lung": lung, "tumour": NAN}})
    assert summary["per_class"]["tumour"] == {"dice": 0.4, "hd95": 6.0, "assd": 3.0}
    assert summary["mean"] == {"dice": 0.7, "hd95": 3.0, "assd": 1.5}
    assert summary["per_case"][1]["classes"]["tumour"] == {"dice": None, "hd95": None, "assd": None}


@quick
@given(st.dictionaries(st.text(), st.fixed_dictionaries({"lung": scores, "tumour": scores})))
def test_summary_is_json_of_the_agreed_form(cases: dict[str, dict[str, ClassScore]]) -> None:
    summary = json.loads(json.dumps(summarise(cases), allow_nan=False))
    assert list(summary) == ["mean", "per_class", "per_case"]
    assert list(summary["mean"]) == ["dice", "hd95", "assd"]
    assert [case["id"] for case in summary["per_case"]] == list(cases)
    assert set(summary["per_class"]) == (set(LABELS) if cases else set())
