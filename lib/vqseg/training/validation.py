"""Score of a model on the locked studies: mean Dice over classes, then over studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vqseg.data.reading import read_image, read_mask
from vqseg.data.studies import Study
from vqseg.inference.predictor import Predictor
from vqseg.metrics import dice_by_structure, mean_dice

__all__ = ["ValidationScore", "validate"]


@dataclass(frozen=True)
class ValidationScore:
    """`dice` is the mean of `per_study`, and a study's value the mean over the classes that it or its mask holds."""

    dice: float
    per_class: dict[str, float | None]
    per_study: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def validate(predictor: Predictor, studies: Sequence[Study]) -> ValidationScore:
    """Predict the studies on their own grids and compare with their masks. Raises `ImageError` or `LabelError`."""
    scores = np.full((len(studies), len(predictor.labels)), np.nan)
    for row, study in zip(scores, studies, strict=True):
        assert study.label is not None
        volume = read_image(study.image)
        reference = read_mask(study.label, volume.grid, predictor.labels)
        mask = predictor.predict(volume).mask
        row[:] = dice_by_structure(mask, reference, predictor.labels)
    per_study = [mean_dice(row) for row in scores]
    per_class = [float(np.nanmean(column)) if np.isfinite(column).any() else None for column in scores.T]
    return ValidationScore(
        float(np.mean(per_study)),
        dict(zip(predictor.labels, per_class, strict=True)),
        {study.id: value for study, value in zip(studies, per_study, strict=True)},
    )
