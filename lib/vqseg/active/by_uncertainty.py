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
# Of three picks in a row the last is made for all structures together, the others for one each.
_PICKS_IN_A_ROW = 3


class _StructureScorer(Scorer):
    """`values` (S, L) in nats, nan where a study may hold none of a structure; the score is their mean.

    Args: `words` say what the values are, and `note` how they came about; `scores` in the place of the means, such as
    noisy ones.
    """

    def __init__(
        self, values: Floats, structures: tuple[str, ...], words: str, scores: Floats | None = None, note: str = ""
    ) -> None:
        self.values, self.structures, self.words, self.note = values, structures, words, note
        self._scores = mean_of_present(values) if scores is None else scores

    def scores(self) -> Floats:
        return self._scores

    def reason(self, index: int, score: float) -> str:
        weightiest = self.parts(index)[0]
        return f"the model's {self.words} at {weightiest.name} is {weightiest.value:.3f} nats{self.note}"

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(self.structures, self.values[index])


class _ByEntropy(Strategy):
    needs = frozenset({"entropy"})
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

    Two picks of three, as in the authors' 66 %, are made for one structure, all in turn in a random order: the study
    with the highest entropy at this structure; the third is made for the mean over the structures. All are under power
    noise whose exponent goes from 1 to 100 on a logarithmic scale while the labelling goes on. The paper chooses
    patches, whose entropies differ by orders of magnitude; a study is chosen here by the mean over its voxels that may
    belong to the structure, and studies differ so little in it that the first rounds are next to random.
    """

    name = "clasp_pe"

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _ClaSPPEScorer(pool, self.entropy(pool), self.words, generator)


class _ClaSPPEScorer(_StructureScorer):
    def __init__(self, pool: Pool, entropy: Floats, words: str, generator: np.random.Generator) -> None:
        super().__init__(entropy, tuple(pool.structures), words)
        beta = 100.0**pool.progress
        self._overall = overall = power_noised(np.nan_to_num(self._scores), beta, generator)
        noised = [power_noised(np.nan_to_num(column), beta, generator) for column in entropy.T]
        # A study that holds none of the structure comes behind all that may, and not last of all.
        self._by_structure = [np.where(np.isneginf(column), overall - _BEHIND, column) for column in noised]
        self._turns = generator.permutation(len(self._by_structure))
        self._taken = 0

    def scores(self) -> Floats:
        return self._overall if self._turn is None else self._by_structure[self._turn]

    def reason(self, index: int, score: float) -> str:
        if self._turn is None:
            return f"it is the turn of all structures together; {super().reason(index, score)}"
        value = self.values[index, self._turn]
        if np.isnan(value):
            return f"it is the turn of {self.structures[self._turn]}, of which no other study may hold any"
        return f"it is the turn of {self.structures[self._turn]}, where the model's {self.words} is {value:.3f} nats"

    @property
    def _turn(self) -> int | None:
        """Structure for which the next pick is made; none: all of them."""
        row, place = divmod(self._taken, _PICKS_IN_A_ROW)
        if place == _PICKS_IN_A_ROW - 1:
            return None
        return int(self._turns[(row * (_PICKS_IN_A_ROW - 1) + place) % len(self._turns)])

    def take(self, index: int) -> None:
        self._taken += 1


class Perturbation(Strategy):
    """The study whose mask changes most when codes are swapped for near ones: mutual information over QPM draws."""

    name = "perturbation"
    needs = frozenset({"disagreement"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.disagreement is not None
        # A disagreement means little unless it is known among how many codes the draws choose.
        codes = pool.replacement_codes
        note = "" if np.isnan(codes) else f" (effective number of replacement codes: {codes:.1f})"
        words = "disagreement under perturbed codes"
        return _StructureScorer(pool.disagreement, tuple(pool.structures), words, note=note)
