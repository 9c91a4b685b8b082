"""What a simulation's curves say: pure functions on numbers, one value a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid
from scipy.optimize import brentq

__all__ = [
    "Comparison",
    "area",
    "bootstrap_interval",
    "bootstrap_ranks",
    "compare",
    "foreground_efficiency",
    "holm",
    "smallest_difference",
]

Floats = NDArray[np.float64]
_RESAMPLES = 10_000
_ALPHA = 0.05
# Gamma of FG-Eff: from a curve that falls steeply to one that is at its end at once.
_RATES = np.concatenate([-np.geomspace(100, 0.01, 200), np.geomspace(0.01, 1000, 500)])


def area(budgets: Sequence[float], values: Sequence[float]) -> float:
    """Area under `values` over `budgets` scaled to [0, 1], by trapezia: the mean value over the labelling."""
    scaled = (np.asarray(budgets, np.float64) - budgets[0]) / (budgets[-1] - budgets[0])
    return float(trapezoid(values, scaled))


def foreground_efficiency(shares: Sequence[float], values: Sequence[float], full: float) -> float | None:
    """FG-Eff, the gamma in y(x) = y_full - (y_full - y_0) exp(-gamma (x - x_0)) that fits best.

    `shares` x of the pool's foreground voxels that are annotated, `values` y of the score, `full` the score with all
    masks (nnActive, arXiv 2511.19183). The larger, the fewer voxels have to be painted for the same score. Values above
    `full` count like others: a curve that reaches it early must not come out worse than one that never does. Gamma is
    looked for from -100 to 1000, which has a curve that is there with its first step, and stays. None where it cannot
    be told: all masks are no better than the few at the start, or no foreground was annotated since.
    """
    x, y = (np.asarray(part, np.float64) for part in (shares, values))
    gap, beyond = full - y[0], x - x[0]
    if gap <= 0 or not beyond.any():
        return None

    def errors(gamma: float) -> Floats:
        return y - full + gap * np.exp(-gamma * beyond)

    def gain(gamma: float) -> float:
        """Minus the slope of the squared errors over gamma, but for a positive factor."""
        return float(errors(gamma) @ (beyond * np.exp(-gamma * beyond)))

    # There may be several minima, and a search that stops when little is gained stops elsewhere on every machine.
    squares = [float(np.square(errors(gamma)).sum()) for gamma in _RATES]
    best = int(np.argmin(squares))
    low, high = _RATES[max(best - 1, 0)], _RATES[min(best + 1, len(_RATES) - 1)]
    if best == 0 and gain(low) <= 0:
        return float(low)
    # Also where so little of a curve is left at this rate that the squares no longer tell it from the next one.
    return float(_RATES[-1]) if gain(high) >= 0 else float(brentq(gain, low, high))


def bootstrap_interval(values: Sequence[float], level: float, seed: int = 0) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of `values`, one a seed, over resampled seeds."""
    means = _resampled(np.asarray(values, np.float64)[None], seed)[0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ranks(values: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, float]:
    """Mean rank of each arm (1 is best) by its mean value, over resampled seeds; all arms have the same seeds."""
    means = _resampled(np.array([values[name] for name in values], np.float64), seed)
    return dict(zip(values, stats.rankdata(-means, axis=0).mean(1).tolist(), strict=True))


@dataclass(frozen=True)
class Comparison:
    """Mean `difference` over seeds, its bootstrap interval `low` to `high`, and `p` of a t-test, both after Holm."""

    difference: float
    low: float
    high: float
    p: float

    @property
    def better(self) -> bool:
        """Whether the difference is above 0 beyond the noise."""
        return self.low > 0 and self.p < _ALPHA


def compare(differences: Mapping[str, Sequence[float]]) -> dict[str, Comparison]:
    """Tell which of several `differences`, each with one value a seed, are above 0.

    Holm's correction over all of them: the i-th smallest of m values of p (from 0) is multiplied by m - i, and its
    interval is one of 1 - 0.05 / (m - i).
    """
    raw = {name: _p_of_zero(values) for name, values in differences.items()}
    corrected = holm(raw)
    intervals = {
        name: bootstrap_interval(differences[name], 1 - _ALPHA / (len(raw) - place))
        for place, name in enumerate(sorted(raw, key=lambda name: raw[name]))
    }
    return {
        name: Comparison(float(np.mean(values)), *intervals[name], corrected[name])
        for name, values in differences.items()
    }


def smallest_difference(differences: Mapping[str, Sequence[float]]) -> float | None:
    """What the median of `differences`, each with one value a seed, must be on average to be told from 0 if it is the
    largest: t(1 - 0.05 / 2m, n - 1) SD / sqrt(n) after Holm over all m. None with one seed."""
    values = np.array(list(differences.values()))
    count = values.shape[1]
    if count < 2:
        return None
    spread = float(np.median(values.std(1, ddof=1)))
    return float(stats.t.ppf(1 - _ALPHA / 2 / len(values), count - 1)) * spread / count**0.5


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Values of p after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979)."""
    largest, corrected = 0.0, {}
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        largest = max(largest, min(1.0, values[name] * (len(values) - place)))
        corrected[name] = largest
    return {name: corrected[name] for name in values}


def _p_of_zero(differences: Sequence[float]) -> float:
    """p of Student's t-test that the mean is 0; 1 where it cannot be told: one seed, or no spread."""
    if np.ptp(differences) == 0:
        return 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _resampled(values: Floats, seed: int) -> Floats:
    """Means (A, resamples) of values (A, seeds) over seeds drawn with replacement, the same ones for every row."""
    count = values.shape[1]
    drawn = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    return values[:, drawn].mean(2)
