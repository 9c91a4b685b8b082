"""Choice of whole batches at random: a cheap addition to any score."""

from __future__ import annotations

import numpy as np

from vqseg.active.by_uncertainty import PredictiveEntropy
from vqseg.active.pool import Pool
from vqseg.active.strategy import Ranked, Scorer, Strategy

__all__ = ["StochasticBatches"]


class StochasticBatches(Strategy):
    """The best of several random batches, by the mean score of its studies (Gaillochet et al., arXiv 2301.07670)."""

    name = "stochastic_batches"
    base: type[Strategy] = PredictiveEntropy
    needs = base.needs

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return self.base(self.settings).scorer(pool, generator)

    def rank(self, pool: Pool, generator: np.random.Generator, picks: int = 1) -> list[Ranked]:
        """The batch of `picks` first, its best study first, then the others; ties as ever."""
        ranked = super().rank(pool, generator, 0)
        size = min(picks, len(ranked))
        if not size:
            return ranked
        # What cannot be scored is worth nothing to a batch.
        worth = {one.id: one.score if np.isfinite(one.score) else 0.0 for one in ranked}
        scores = np.array([worth[study] for study in pool.ids])
        batches = [generator.choice(len(scores), size, replace=False) for _ in range(self.settings.batches)]
        best = max(batches, key=lambda batch: float(scores[batch].mean()))
        chosen = {pool.ids[index] for index in best}
        return [one for one in ranked if one.id in chosen] + [one for one in ranked if one.id not in chosen]
