"""Several scores at once: what the codes say of a study, and what the model does when they are perturbed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vqseg.active.by_codes import CodebookCoverage, CodebookRarity
from vqseg.active.by_uncertainty import Perturbation
from vqseg.active.pool import Pool
from vqseg.active.strategy import Part, Scorer, Strategy, largest_parts

__all__ = ["CodebookBalanced"]

Floats = NDArray[np.float64]
_PARTS: dict[str, type[Strategy]] = {
    "rarity": CodebookRarity,
    "coverage": CodebookCoverage,
    "disagreement": Perturbation,
}


class CodebookBalanced(Strategy):
    """Rarity, coverage and disagreement under perturbed codes, balanced by their ranks, under power noise.

        B(s) = ln(mean over the parts of rank(s) / S) + Gumbel noise of scale 1 / beta

    The rank is the number of studies that score no more, and of what cannot be scored 0, so no part outvotes another by
    its unit: the mean rank is Borda's count, and the combination is this project's. All are ranked anew after every
    pick; beta is `active.balanced_power` (power noise: Kirsch et al., arXiv 2106.12059).
    """

    name = "codebook_balanced"
    needs = frozenset().union(*(part.needs for part in _PARTS.values()))

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        parts = self.settings.balanced_parts
        scorers = [_PARTS[part](self.settings).scorer(pool, generator) for part in parts]
        noise = generator.gumbel(size=len(pool.ids)) / self.settings.balanced_power
        return _BalancedScorer(parts, scorers, noise)


class _BalancedScorer(Scorer):
    def __init__(self, names: Sequence[str], scorers: Sequence[Scorer], noise: Floats) -> None:
        self._names, self._scorers, self._noise = names, scorers, noise

    @cached_property
    def _ranks(self) -> Floats:
        """Share (parts, S) of the studies that a study is at least as good as."""
        scores = np.array([scorer.scores() for scorer in self._scorers])
        return np.where(np.isfinite(scores), rankdata(scores, "max", axis=1, nan_policy="omit"), 0) / scores.shape[1]

    def scores(self) -> Floats:
        return self.noiseless() + self._noise

    def noiseless(self) -> Floats:
        mean = self._ranks.mean(0)
        # What no part can score has no place.
        return np.where(mean > 0, np.log(np.where(mean > 0, mean, 1.0)), np.nan)

    def take(self, index: int) -> None:
        for scorer in self._scorers:
            scorer.take(index)
        self.__dict__.pop("_ranks", None)

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(self._names, self._ranks[:, index])

    def reason(self, index: int, score: float) -> str:
        said = (f"{part.name} of {part.value:.0%}" for part in self.parts(index))
        return f"it is at least as good as so many of the studies by {', by '.join(said)}, drawn with some noise"
