"""Strategies that draw: what every other one has to beat."""

from __future__ import annotations

import numpy as np

from vqseg.active.pool import Pool
from vqseg.active.scores import power_noised
from vqseg.active.strategy import FixedScorer, Scorer, Strategy

__all__ = ["ForegroundRandom", "Uniform"]


_UNIFORM_SHARE = 1 / 3


class Uniform(Strategy):
    """Every study is equally likely: plain random."""

    name = "uniform"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return FixedScorer(generator.random(len(pool.ids)), "drawn at random")


class ForegroundRandom(Strategy):
    """A third of the studies is drawn at random; for the others a voxel is drawn, each structure equally likely.

    What foreground-aware random (nnActive, arXiv 2511.19183) is for whole studies, with predicted foreground: the study
    of the drawn voxel is chosen.
    """

    name = "foreground_random"
    needs = frozenset({"foreground"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.foreground is not None
        present = pool.foreground[:, pool.foreground.sum(0) > 0]
        uniform = np.full(len(pool.ids), 1 / len(pool.ids))
        by_voxels = (present / present.sum(0)).mean(1) if present.shape[1] else uniform
        chance = _UNIFORM_SHARE * uniform + (1 - _UNIFORM_SHARE) * by_voxels
        return FixedScorer(power_noised(chance, 1.0, generator), "drawn at random, mostly by its predicted foreground")
