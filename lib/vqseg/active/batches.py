"""Choice of whole batches at random: a cheap addition to any score."""

from __future__ import annotations

import numpy as np

from vqseg.active.by_uncertainty import PredictiveEntropy
from vqseg.active.pool import Pool
from vqseg.active.strategy import Ranking, Scorer, Strategy, nan_last
from vqseg.config import Active

__all__ = ["StochasticBatches"]


class StochasticBatches(Strategy):
    """The best of several random batches, by the mean score of its studies (Gaillochet et al., arXiv 2301.07670).

        argmax over B random batches b of 1 / |b| sum over s in b of score(s)

    There are `active.batches` of them. The scores are those of `base`, before any pick. A batch has `active.batch`
    studies, also where fewer are asked for: the best of a hundred batches of one would be nearly the best study of
    all, and no longer drawn.
    """

    name = "stochastic_batches"
    needs = PredictiveEntropy.needs

    def __init__(self, settings: Active, base: Strategy | None = None) -> None:
        super().__init__(settings)
        self._base = base or PredictiveEntropy(settings)
        self.needs = self._base.needs

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return self._base.scorer(pool, generator)

    def rank(self, pool: Pool, generator: np.random.Generator, picks: int = 1) -> Ranking:
        """The batch first, its best study first, then the others; ties as ever. Where fewer are asked for than it has,
        its studies are in the order in which they were drawn."""
        size = min(max(picks, self.settings.batch), len(pool.ids))
        if not size:
            return super().rank(pool, generator, 0)
        scorer = self.scorer(pool, generator)
        # What cannot be scored is worth nothing to a batch, and less than any other where scores are negative.
        scores = scorer.scores()
        known = np.isfinite(scores)
        worth = np.where(known, scores, 2 * scores[known].min(initial=0.0))
        batches = [generator.choice(len(worth), size, replace=False) for _ in range(self.settings.batches)]
        best = max(batches, key=lambda batch: float(worth[batch].mean()))
        by_worth = np.argsort(-worth, kind="stable")
        chosen = np.isin(by_worth, best)
        batch = by_worth[chosen] if size <= picks else best
        return Ranking(pool, scorer, [*batch.tolist(), *by_worth[~chosen].tolist()], nan_last(scores), [])
