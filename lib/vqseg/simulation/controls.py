"""Strategies that must not win, and one that knows what no other can: what a result has to stand beside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vqseg.active.pool import Pool
from vqseg.active.scores import plug_in_entropy
from vqseg.active.strategy import FixedScorer, Part, Scorer, Strategy
from vqseg.config import Active

__all__ = ["Known", "LargestForeground", "PlugInEntropy", "RandomByLength", "Reversed", "Shuffled"]

Floats = NDArray[np.float64]


class Known(Strategy):
    """The study with the largest of `values`, which were known before: its length, or how wrong the model is."""

    name = "known"

    def __init__(self, settings: Active, values: Mapping[str, float], words: str) -> None:
        super().__init__(settings)
        self._values, self._words = values, words

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return FixedScorer(np.array([self._values[study] for study in pool.ids], np.float64), self._words)


class PlugInEntropy(Strategy):
    """The study with the largest entropy of its code counts as they are, which grows with their number."""

    name = "plug_in_entropy"
    needs = frozenset({"usage"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.usage is not None
        return FixedScorer(plug_in_entropy(pool.usage), "the entropy of its code counts is {score:.3f} nats")


class LargestForeground(Strategy):
    """The study of which the model calls most voxels a structure: what a score is worth that grows with them."""

    name = "largest_foreground"
    needs = frozenset({"foreground"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.foreground is not None
        return FixedScorer(pool.foreground.sum(1), "{score:.0f} of its voxels are predicted as a structure")


class RandomByLength(Strategy):
    """Drawn at random from as many strata of equal size as studies are picked, short studies to long ones."""

    name = "random_by_length"

    def __init__(self, settings: Active, slices: Mapping[str, int], strata: int) -> None:
        super().__init__(settings)
        self._slices, self._strata = slices, strata

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        order = np.argsort([self._slices[study] for study in pool.ids], kind="stable")
        stratum = np.empty(len(order), int)
        for number, members in enumerate(np.array_split(order, self._strata)):
            stratum[members] = number
        return _StratumScorer(stratum, generator.permutation(self._strata), generator.random(len(order)))


class _StratumScorer(Scorer):
    """The strata have their `turns`; who is not of the one whose turn it is comes behind."""

    def __init__(self, stratum: NDArray[np.int64], turns: NDArray[np.int64], draws: Floats) -> None:
        self._stratum, self._turns, self._draws, self._taken = stratum, turns, draws, 0

    def scores(self) -> Floats:
        return self._draws + (self._stratum == self._turns[self._taken % len(self._turns)])

    def noiseless(self) -> Floats:
        return np.zeros_like(self._draws)

    def take(self, index: int) -> None:
        self._taken += 1

    def reason(self, index: int, score: float) -> str:
        return "drawn at random among studies of about its length"


class _Changed(Strategy):
    """A strategy whose scores are changed; what it learns from every pick is as ever."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy.settings)
        self.strategy = strategy


class Reversed(_Changed):
    """What the strategy would take last."""

    name = "reversed"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _ChangedScorer(self.strategy.scorer(pool, generator), np.arange(len(pool.ids)), -1.0)


class Shuffled(_Changed):
    """The strategy's scores, each given to another study: what is left is their distribution."""

    name = "shuffled"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _ChangedScorer(self.strategy.scorer(pool, generator), generator.permutation(len(pool.ids)), 1.0)


class _ChangedScorer(Scorer):
    def __init__(self, scorer: Scorer, order: NDArray[np.int64], sign: float) -> None:
        self._scorer, self._order, self._sign = scorer, order, sign

    def scores(self) -> Floats:
        return self._sign * self._scorer.scores()[self._order]

    def noiseless(self) -> Floats:
        return self._sign * self._scorer.noiseless()[self._order]

    def take(self, index: int) -> None:
        self._scorer.take(index)

    def reason(self, index: int, score: float) -> str:
        return f"the changed score is {score:.3f}"

    def parts(self, index: int) -> tuple[Part, ...]:
        return ()
