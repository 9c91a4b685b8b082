"""Per volume and class: Dice, 95th percentile of the Hausdorff distance and average symmetric surface distance.

Rule for empty masks: where a class is in neither mask there is nothing to find, so it is not counted (NaN, left out of
every mean). Where it is in exactly one of them, Dice is 0 and both distances are the length of the volume's diagonal in
mm, so that a prediction never gains by leaving a class out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray

from vqseg.errors import DataError


@dataclass(frozen=True)
class ClassScore:
    """`dice` within 0..1; `hd95` and `assd` in mm; all NaN where the class is in neither mask."""

    dice: float
    hd95: float
    assd: float


METRICS = tuple(field.name for field in fields(ClassScore))


def dice(prediction: NDArray, reference: NDArray, value: int) -> float:
    """Dice of the voxels equal to `value`; NaN where neither mask has one. Masks of one shape, any dimension."""
    predicted, expected = prediction == value, reference == value
    size = int(predicted.sum()) + int(expected.sum())
    return 2 * int((predicted & expected).sum()) / size if size else math.nan


def dice_by_structure(prediction: NDArray, reference: NDArray, labels: Mapping[str, int]) -> NDArray[np.float64]:
    """Dice (L,) of two masks by structure, in the order of `labels`; NaN where neither mask holds it."""
    return np.array([dice(prediction, reference, value) for value in labels.values()])


def mean_dice(by_structure: NDArray[np.float64]) -> float:
    """Mean over the structures (L,) that either mask holds. Where there is none, both are right about everything: 1."""
    return float(np.nanmean(by_structure)) if np.isfinite(by_structure).any() else 1.0


def score_volume(
    prediction: NDArray, reference: NDArray, labels: Mapping[str, int], spacing: Sequence[float]
) -> dict[str, ClassScore]:
    """Score every class of `labels` (name -> value) in two integer masks `(X, Y, Z)` with voxels of `spacing` mm.

    Raises DataError when the masks are not integers, not 3D or differ in shape, or when the spacing is not three
    positive numbers.
    """
    _check(prediction, reference, spacing)
    diagonal = math.hypot(*(size * step for size, step in zip(reference.shape, spacing, strict=True)))
    return {
        name: _score_class(prediction == value, reference == value, spacing, diagonal) for name, value in labels.items()
    }


def summarise(cases: Mapping[str, Mapping[str, ClassScore]]) -> dict[str, Any]:
    """Scores of many volumes (`cases`: id -> class -> score) as what `vqseg evaluate` writes.

    `per_class` holds means over the volumes; `mean` is the mean of these class means, so a class that is rare counts
    as much as one that is in every volume. What is not counted is None, which JSON knows where it does not know NaN.
    """
    names = list(dict.fromkeys(name for classes in cases.values() for name in classes))
    rows = [{name: asdict(score) for name, score in classes.items()} for classes in cases.values()]
    per_class = {name: _mean(row[name] for row in rows if name in row) for name in names}
    return {
        "mean": _nullable(_mean(per_class.values())),
        "per_class": {name: _nullable(means) for name, means in per_class.items()},
        "per_case": [
            {"id": case, "classes": {name: _nullable(asdict(score)) for name, score in classes.items()}}
            for case, classes in cases.items()
        ],
    }


def _score_class(
    predicted: NDArray[np.bool_], expected: NDArray[np.bool_], spacing: Sequence[float], diagonal: float
) -> ClassScore:
    found, present = bool(predicted.any()), bool(expected.any())
    if not found and not present:
        return ClassScore(math.nan, math.nan, math.nan)
    if found != present:
        return ClassScore(0.0, diagonal, diagonal)
    box = _joint_box(predicted | expected)
    return ClassScore(dice(predicted, expected, True), *_surface_distances(predicted[box], expected[box], spacing))


def _surface_distances(
    predicted: NDArray[np.bool_], expected: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float]:
    masks = [torch.from_numpy(mask.copy())[None, None] for mask in (predicted, expected)]
    options: dict[str, Any] = {"include_background": True, "spacing": [float(step) for step in spacing]}
    with warnings.catch_warnings():
        # MONAI 1.6 passes its own function an argument that it has deprecated; nobody who reads this can mend that.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        hd95 = compute_hausdorff_distance(*masks, percentile=95, **options)
        assd = compute_average_surface_distance(*masks, symmetric=True, **options)
    return hd95.item(), assd.item()


def _joint_box(union: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Bounding box with a margin of one voxel: distance transforms of a whole volume take most of the time."""
    box = []
    for axis in range(union.ndim):
        occupied = np.flatnonzero(union.any(axis=tuple(other for other in range(union.ndim) if other != axis)))
        box.append(slice(max(int(occupied[0]) - 1, 0), int(occupied[-1]) + 2))
    return tuple(box)


def _mean(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    rows = list(scores)
    counted = {metric: [row[metric] for row in rows if not math.isnan(row[metric])] for metric in METRICS}
    return {metric: math.fsum(values) / len(values) if values else math.nan for metric, values in counted.items()}


def _nullable(score: Mapping[str, float]) -> dict[str, float | None]:
    return {metric: None if math.isnan(value) else value for metric, value in score.items()}


def _check(prediction: NDArray, reference: NDArray, spacing: Sequence[float]) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.ndim != 3 or mask.dtype.kind not in "iub":
            raise DataError(f"{name}: a mask must be a 3D array of integers, not {mask.ndim}D of {mask.dtype}")
    if prediction.shape != reference.shape:
        raise DataError(f"prediction {prediction.shape} and reference {reference.shape} must have the same shape")
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(f"spacing must be three positive numbers in mm, not {tuple(spacing)}")
