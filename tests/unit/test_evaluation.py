"""Scores of two folders of masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import LABELS, make_affine, stored, write_nifti, write_studies

from vqseg.errors import DataError, LabelError
from vqseg.evaluation import PREDICTIONS_FILE, evaluate


def name_structures(folder: Path) -> None:
    (folder / PREDICTIONS_FILE).write_text(json.dumps({"labels": LABELS}), encoding="utf-8")


def test_masks_score_perfectly_against_themselves(tmp_path: Path) -> None:
    write_studies(tmp_path, 2)
    scores = evaluate(tmp_path / "labels", tmp_path / "labels")
    assert scores["mean"] == {"dice": 1, "hd95": 0, "assd": 0}
    assert [case["id"] for case in scores["per_case"]] == ["s01", "s02"]
    assert list(scores["per_class"]) == ["1", "2"]
    name_structures(tmp_path / "labels")
    assert list(evaluate(tmp_path / "labels", tmp_path / "labels")["per_class"]) == ["left", "right"]


def test_storage_order_of_a_prediction_does_not_matter_but_its_place_does(tmp_path: Path) -> None:
    reference = write_studies(tmp_path, 1)[0].label
    assert reference is not None
    array, affine = stored(reference)
    other = tmp_path / "other" / "s01.nii.gz"
    write_nifti(other, np.roll(array, 1, 0), affine)
    shifted = evaluate(other.parent, reference.parent)["mean"]
    assert 0.3 < shifted["dice"] < 1
    assert shifted["hd95"] == pytest.approx(2)  # one voxel of 2 mm
    write_nifti(other, array[:, :, :-1], affine)
    with pytest.raises(LabelError, match=r"other.*shape"):
        evaluate(other.parent, reference.parent)
    write_nifti(other, array, make_affine((12, 8, 8), (2, 2, 2), "LAS"))
    with pytest.raises(LabelError, match=r"other.*affines"):
        evaluate(other.parent, reference.parent)


def test_references_without_a_prediction_are_not_scored(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3)
    (tmp_path / "predictions").mkdir()
    name_structures(tmp_path / "predictions")
    with pytest.raises(DataError, match="predictions"):
        evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert studies[1].label is not None
    studies[1].label.rename(tmp_path / "predictions" / "s02.nii.gz")
    with pytest.raises(DataError, match="s02"):  # a prediction without a reference cannot be scored
        evaluate(tmp_path / "predictions", tmp_path / "labels")


def test_unknown_value_in_a_prediction_is_named(tmp_path: Path) -> None:
    reference = write_studies(tmp_path, 1)[0].label
    assert reference is not None
    array, affine = stored(reference)
    write_nifti(tmp_path / "p" / "s01.nii.gz", array + (array == 2), affine)
    name_structures(tmp_path / "p")
    with pytest.raises(LabelError, match="value 3"):
        evaluate(tmp_path / "p", tmp_path / "labels")


@pytest.mark.parametrize("text", ["[]", "{", '{"labels": [1, 2]}', '{"labels": "x"}'])
def test_damaged_list_of_structures_is_no_stack_trace(text: str, tmp_path: Path) -> None:
    write_studies(tmp_path, 1)
    (tmp_path / "labels" / PREDICTIONS_FILE).write_text(text, encoding="utf-8")
    try:
        scores = evaluate(tmp_path / "labels", tmp_path / "labels")
    except DataError as error:
        assert PREDICTIONS_FILE in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert scores["mean"]["dice"] == 1


def test_masks_without_any_structure(tmp_path: Path) -> None:
    write_nifti(tmp_path / "m.nii.gz", np.zeros((4, 4, 4), np.uint8))
    assert evaluate(tmp_path, tmp_path)["mean"]["dice"] is None
