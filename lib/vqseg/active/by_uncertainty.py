"""Strategies by what the model is unsure of, structure by structure."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vqseg.active.pool import Pool
from vqseg.active.scores import power_noised
from vqseg.active.strategy import Part, Scorer, Strategy, largest_parts, mean_of_present

__all__ = ["ClaSPPE", "Perturbation", "PowerEntropy", "PredictiveEntropy"]

Floats = NDArray[np.float64]
# More than any logarithm of an entropy and any noise can differ by.
_BEHIND = 1e6


class _StructureScorer(Scorer):
    """`values` (S, L) in nats, nan where a study may hold none of a structure; the score is their mean.

    Args: `words` say what the values are; `scores` in the place of the means, such as noisy ones.
    """

    def __init__(self, values: Floats, structures: tuple[str, ...], words: str, scores: Floats | None = None) -> None:
        self.values, self.structures, self.words = values, structures, words
        self._scores = mean_of_present(values) if scores is None else scores

    def scores(self) -> Floats:
        return self._scores

    def reason(self, index: int, score: float) -> str:
        weightiest = self.parts(index)[0]
        return f"the model's {self.words} at {weightiest.name} is {weightiest.value:.3f} nats"

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(self.structures, self.values[index])


class _ByEntropy(Strategy):
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    words: ClassVar[str] = "uncertainty"

    @staticmethod
    def entropy(pool: Pool) -> Floats:
        assert pool.entropy is not None
        return pool.entropy


class PredictiveEntropy(_ByEntropy):
    """The study that the model is least sure of: predictive entropy of the voxels that may belong to each structure."""

    name = "predictive_entropy"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _StructureScorer(self.entropy(pool), tuple(pool.structures), self.words)


class PowerEntropy(_ByEntropy):
    """Predictive entropy with power noise, so that a batch is not several of one kind (Kirsch et al., 2106.12059)."""

    name = "power_entropy"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        entropy = self.entropy(pool)
        noised = power_noised(np.nan_to_num(mean_of_present(entropy)), self.settings.power, generator)
        return _StructureScorer(entropy, tuple(pool.structures), self.words, noised)


class ClaSPPE(_ByEntropy):
    """Class-stratified, scheduled power predictive entropy (Lueth et al., arXiv 2601.13677), for whole studies.

    Each pick is made for one structure, all in turn in a random order: the study with the highest entropy at this
    structure, under power noise whose exponent goes from 1 to 100 on a logarithmic scale while the labelling goes on.
    The paper chooses patches; a study is chosen here by the mean over its voxels that may belong to the structure.
    """

    name = "clasp_pe"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _ClaSPPEScorer(pool, self.entropy(pool), self.words, generator)


class _ClaSPPEScorer(_StructureScorer):
    def __init__(self, pool: Pool, entropy: Floats, words: str, generator: np.random.Generator) -> None:
        super().__init__(entropy, tuple(pool.structures), words)
        beta = 100.0**pool.progress
        overall = power_noised(np.nan_to_num(self._scores), beta, generator)
        noised = [power_noised(np.nan_to_num(column), beta, generator) for column in entropy.T]
        # A study that holds none of the structure comes behind all that may, and not last of all.
        self._by_structure = [np.where(np.isneginf(column), overall - _BEHIND, column) for column in noised]
        self._turns = generator.permutation(len(self._by_structure))
        self._taken = 0

    def scores(self) -> Floats:
        return self._by_structure[self._turn]

    def reason(self, index: int, score: float) -> str:
        value = self.values[index, self._turn]
        if np.isnan(value):
            return f"it is the turn of {self.structures[self._turn]}, of which no other study may hold any"
        return f"it is the turn of {self.structures[self._turn]}, where the model's {self.words} is {value:.3f} nats"

    @property
    def _turn(self) -> int:
        return int(self._turns[self._taken % len(self._turns)])

    def take(self, index: int) -> None:
        self._taken += 1


class Perturbation(Strategy):
    """The study whose mask changes most when codes are swapped for near ones: mutual information over QPM draws."""

    name = "perturbation"
    needs = frozenset({"disagreement"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.disagreement is not None
        return _StructureScorer(pool.disagreement, tuple(pool.structures), "disagreement under perturbed codes")
