"""Strategies that draw: what every other one has to beat."""

from __future__ import annotations

import numpy as np

from vqseg.active.pool import Pool
from vqseg.active.scores import power_noised
from vqseg.active.strategy import FixedScorer, Scorer, Strategy

__all__ = ["ForegroundRandom", "Uniform"]


class Uniform(Strategy):
    """Every study is equally likely: plain random."""

    name = "uniform"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return FixedScorer(generator.random(len(pool.ids)), "drawn at random")


class ForegroundRandom(Strategy):
    """A voxel of a structure is drawn at random, each structure as likely as the others, and its study is chosen.

    What foreground-aware random (nnActive, arXiv 2511.19183) is for whole studies, with predicted foreground.
    """

    name = "foreground_random"
    needs = frozenset({"foreground"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.foreground is not None
        share = (pool.foreground / np.maximum(pool.foreground.sum(0), 1e-300)).mean(1)
        return FixedScorer(
            power_noised(share, 1.0, generator), "drawn at random in proportion to its predicted foreground"
        )
