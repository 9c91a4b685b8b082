"""Scores of predicted masks against reference masks, two folders of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqseg.config import Data
from vqseg.data.reading import largest_value, read_grid, read_mask
from vqseg.data.studies import Study, find_studies
from vqseg.errors import DataError
from vqseg.metrics import score_volume, summarise

__all__ = ["PREDICTIONS_FILE", "evaluate"]

# Written by `predict` beside the masks; holds the names of the structures.
PREDICTIONS_FILE = "predictions.json"


def evaluate(predictions: Path, references: Path) -> dict[str, Any]:
    """Score every prediction that is in the folder. Raises `DataError` when one has no reference, or `LabelError`."""
    studies = find_studies(predictions, references)
    missing = [study.id for study in studies if study.label is None]
    if missing:
        raise DataError(f"{references}: holds no mask for {len(missing)} predictions, among them {missing[0]}")
    labels = _names(predictions) or _values(studies)
    cases = {}
    for study in studies:
        assert study.label is not None
        grid = read_grid(study.label)
        reference, prediction = (read_mask(path, grid, labels) for path in (study.label, study.image))
        cases[study.id] = score_volume(prediction, reference, labels, grid.spacing)
    return summarise(cases)


def _names(predictions: Path) -> dict[str, int]:
    path = predictions / PREDICTIONS_FILE
    if not path.exists():
        return {}
    try:
        return Data(labels=json.loads(path.read_text(encoding="utf-8"))["labels"]).labels
    except (OSError, TypeError, KeyError, ValueError):
        raise DataError(f"{path}: damaged; run `vqseg predict` again, or remove it to score by value") from None


def _values(studies: list[Study]) -> dict[str, int]:
    """Without names the structures are called by their values."""
    largest = max(largest_value(study.label) for study in studies if study.label)
    return {str(value): value for value in range(1, largest + 1)}
