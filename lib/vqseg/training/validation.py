"""Score of a model on the locked studies: mean Dice over classes, then over studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqseg.data.reading import Volume, read_image, read_mask
from vqseg.data.studies import Study
from vqseg.inference.predictor import Predictor
from vqseg.metrics import dice_by_structure, mean_dice

__all__ = ["Look", "ValidationScore", "validate"]

# Is shown a study's id, its Dice, the volume, its mask and the prediction.
Look = Callable[[str, float, Volume, NDArray[np.uint8], NDArray[np.uint8]], None]


@dataclass(frozen=True)
class ValidationScore:
    """`dice` is the mean of `per_study`, and a study's value the mean over the classes that it or its mask holds; its
    own values by class, none where neither holds it, are in `per_study_and_class`."""

    dice: float
    per_class: dict[str, float | None]
    per_study: dict[str, float]
    per_study_and_class: dict[str, dict[str, float | None]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def validate(predictor: Predictor, studies: Sequence[Study], look: Look | None = None) -> ValidationScore:
    """Predict the studies on their own grids and compare with their masks; `look` sees each one.

    Raises `ImageError` or `LabelError`.
    """
    scores = np.full((len(studies), len(predictor.labels)), np.nan)
    for row, study in zip(scores, studies, strict=True):
        assert study.label is not None
        volume = read_image(study.image)
        reference = read_mask(study.label, volume.grid, predictor.labels)
        mask = predictor.predict(volume).mask
        row[:] = dice_by_structure(mask, reference, predictor.labels)
        if look:
            look(study.id, mean_dice(row), volume, reference, mask)
    per_study = [mean_dice(row) for row in scores]
    per_class = [float(np.nanmean(column)) if np.isfinite(column).any() else None for column in scores.T]
    ids = [study.id for study in studies]
    return ValidationScore(
        float(np.mean(per_study)),
        dict(zip(predictor.labels, per_class, strict=True)),
        dict(zip(ids, per_study, strict=True)),
        {
            study: {
                name: None if np.isnan(dice) else float(dice) for name, dice in zip(predictor.labels, row, strict=True)
            }
            for study, row in zip(ids, scores, strict=True)
        },
    )
