"""Strategies that draw: what every other one has to beat."""

from __future__ import annotations

import numpy as np

from vqseg.active.pool import Pool
from vqseg.active.scores import power_noised
from vqseg.active.strategy import FixedScorer, Scorer, Strategy

__all__ = ["ForegroundRandom", "Uniform"]

_UNIFORM_SHARE = 1 / 3


class Uniform(Strategy):
    """Every study is equally likely: plain random, a score drawn from U(0, 1)."""

    name = "uniform"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        draws = generator.random(len(pool.ids))
        return FixedScorer(draws, "drawn at random", np.zeros_like(draws))


class ForegroundRandom(Strategy):
    """A third of the studies is drawn at random; for the others a structure is drawn, and a study that holds it.

        P(s) = 1/3 1/S + 2/3 mean over structures l of [s holds l] / (number of studies that hold l)

    Structures are those that any study holds; without one all studies are equally likely. The score is ln P(s) + Gumbel
    noise, by which studies are drawn with these chances and without replacement.

    This project's form of foreground-aware random (nnActive, arXiv 2511.19183) for whole studies, with predicted
    foreground: there images take turns, and the place within the image is drawn by its structures. Where every study
    holds every structure it is plain random.
    """

    name = "foreground_random"
    needs = frozenset({"foreground"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.foreground is not None
        holds = pool.foreground > 0
        holds = holds[:, holds.any(0)]
        uniform = np.full(len(pool.ids), 1 / len(pool.ids))
        by_structure = (holds / holds.sum(0)).mean(1) if holds.shape[1] else uniform
        chance = _UNIFORM_SHARE * uniform + (1 - _UNIFORM_SHARE) * by_structure
        drawn = power_noised(chance, 1.0, generator)
        return FixedScorer(drawn, "drawn at random, mostly among studies with a structure that was drawn", chance)
