"""Which cases of a validation are kept, which slice of them, and how that is drawn."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from builders import make_affine, make_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqseg.report.cases import Case, CaseFile, ExtremeCases, case_of, read_cases, write_cases
from vqseg.report.pictures import png_of, shown_part

LABELS = {"a": 1, "b": 2}


def volume(shape=(12, 10, 8), spacing=(1.0, 1.0, 3.0)):
    array = np.random.default_rng(0).random(shape, np.float32)
    return make_volume(array, make_affine(shape, spacing, "RAS"))


def masks(shape=(12, 10, 8)):
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    reference[3:6, 3:7, 5], prediction[3:7, 3:7, 5] = 1, 1
    prediction[0, 0, 2] = 2
    return reference, prediction


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"), int)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), max_size=14))
def test_the_three_worst_and_three_others_that_are_best_are_kept(scores: list[float]) -> None:
    extremes, image, nothing = ExtremeCases(), volume((3, 3, 3)), np.zeros((3, 3, 3), np.uint8)
    for number, dice in enumerate(scores):
        extremes.add(f"s{number:02}", dice, image, nothing, nothing)
    kept = CaseFile("t", 1, extremes.worst_first)
    in_order = sorted((dice, f"s{number:02}") for number, dice in enumerate(scores))
    count = min(3, -(-len(scores) // 2))
    assert [(case.dice, case.study) for case in kept.worst] == in_order[:count]
    assert [(case.dice, case.study) for case in kept.best] == in_order[::-1][: min(3, len(scores) - count)]


def test_the_slice_is_across_the_widest_spacing_where_most_is_segmented() -> None:
    case = case_of("s", 0.5, volume(), *masks())
    assert (case.axis, case.index, case.depth, case.spacing) == (2, 5, 8, (1.0, 1.0))
    np.testing.assert_array_equal(case.prediction, masks()[1][:, :, 5])
    assert (case.image.min(), case.image.max()) == (0, 255)
    nothing = np.zeros((12, 10, 8), np.uint8)
    assert case_of("s", 1.0, volume(spacing=(4.0, 1.0, 2.0)), nothing, nothing).index == 6


def test_cases_come_back_as_they_were_kept_and_only_for_their_validation(tmp_path: Path) -> None:
    assert read_cases(tmp_path, "t", 3) is None
    kept = CaseFile("t", 3, [case_of('a "b" <c>', 0.5, volume(), *masks())], np.arange(4))
    write_cases(tmp_path, kept)
    found = read_cases(tmp_path, "t", 3)
    assert found is not None
    np.testing.assert_array_equal(found.usage, kept.usage)
    for name in Case.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found.worst_first[0], name), getattr(kept.worst_first[0], name))
    assert read_cases(tmp_path, "t", 4) is None
    assert read_cases(tmp_path, "u", 3) is None
    write_cases(tmp_path, CaseFile("t", 3, []))
    empty = read_cases(tmp_path, "t", 3)
    assert empty is not None
    assert empty.usage is None


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0), (3.0, 0.7)])
def test_a_millimetre_is_as_long_in_both_directions(spacing: tuple[float, float]) -> None:
    nothing = np.zeros((20, 30), np.uint8)
    case = Case("s", 0.0, nothing, nothing, nothing, spacing, 2, 0, 1)
    height, width, _ = pixels(png_of(case, LABELS)).shape
    gap = 5  # pixels between the two halves
    assert (width - gap) / 2 / height == pytest.approx(20 * spacing[0] / (30 * spacing[1]), rel=0.03)


def test_contours_lie_where_the_masks_are_as_radiologists_look_at_it() -> None:
    image = np.zeros((40, 40), np.uint8)
    reference, prediction = image.copy(), image.copy()
    reference[30:36, 32:38] = 1  # the patient's right, in front
    found = pixels(png_of(Case("s", 0.0, image, reference, prediction, (1.0, 1.0), 2, 0, 1), LABELS))
    coloured = np.ptp(found, axis=-1) > 60
    rows, columns = np.nonzero(coloured)
    height, width = coloured.shape
    half = width / 2
    assert columns.min() > half, "the left picture is the image alone"
    assert rows.mean() / height < 0.3, "in front is at the top"
    assert (columns.mean() - half) / half < 0.3, "the patient's right is on the left"


def test_only_the_surroundings_of_a_small_structure_are_shown() -> None:
    image = np.zeros((400, 300), np.uint8)
    found = image.copy()
    found[100:110, 290:300] = 1
    case = Case("s", 0.0, image, found, image, (1.0, 0.5), 2, 0, 1)
    assert shown_part(case) == (slice(75, 135), slice(240, 350))
    assert shown_part(Case("s", 0.0, image, image, image, (1.0, 0.5), 2, 0, 1)) == (slice(0, 400), slice(0, 300))
