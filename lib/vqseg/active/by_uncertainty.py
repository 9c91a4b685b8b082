"""Strategies by what the model is unsure of."""

from __future__ import annotations

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

    Args: `words` say what the values are, and `note` how they came about.
    """

    def __init__(self, values: Floats, structures: tuple[str, ...], words: str, note: str = "") -> None:
        self.values, self.structures, self.words, self.note = values, structures, words, note
        self._scores = mean_of_present(values)

    def scores(self) -> Floats:
        return self._scores

    def reason(self, index: int, score: float) -> str:
        weightiest = self.parts(index)[0]
        return f"the model's {self.words} at {weightiest.name} is {weightiest.value:.3f} nats{self.note}"

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(self.structures, self.values[index])


class PredictiveEntropy(Strategy):
    """The study that the model is least sure of.

        score(s) = mean over structures l of the mean of H over the voxels that may belong to l

    H is the entropy of `vqseg.active.uncertainty.predictive_entropy`; a structure that a study may not hold takes no
    part.
    """

    name = "predictive_entropy"
    needs = frozenset({"entropy"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.entropy is not None
        return _StructureScorer(pool.entropy, tuple(pool.structures), "uncertainty")


class _PowerScorer(Scorer):
    """Mean entropy of all voxels of a study under power noise, the stronger the smaller `beta`."""

    def __init__(self, pool: Pool, beta: float, generator: np.random.Generator) -> None:
        assert pool.class_entropy is not None
        self.by_class, self.structures = np.nan_to_num(pool.class_entropy), tuple(pool.structures)
        self.entropy = self.by_class.sum(1)
        self.noised = power_noised(self.entropy, beta, generator)

    def scores(self) -> Floats:
        return self.noised

    def noiseless(self) -> Floats:
        return self.entropy

    def reason(self, index: int, score: float) -> str:
        return f"the model's mean entropy is {self.entropy[index]:.3g} nats, drawn with some noise"

    def parts(self, index: int) -> tuple[Part, ...]:
        return largest_parts(("background", *self.structures), self.by_class[index])


class PowerEntropy(Strategy):
    """Mean predictive entropy of the whole study with power noise, so that a batch is not several of one kind (Kirsch
    et al., arXiv 2106.12059).

        score(s) = ln(mean over voxels of H) + Gumbel noise of scale 1 / beta,   beta = `active.power`
    """

    name = "power_entropy"
    needs = frozenset({"class_entropy"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _PowerScorer(pool, self.settings.power, generator)


class ClaSPPE(Strategy):
    """Class-stratified, scheduled power predictive entropy (Lueth et al., arXiv 2601.13677), for whole studies.

    Two picks of three, as in the authors' 66 %, are made for one structure, all in turn in a random order: the study
    with the highest mean of H p_c over its voxels, entropy times the structure's probability; the third is made for the
    mean entropy. All are under power noise whose exponent goes from 1 to 100 on a logarithmic scale while the labelling
    goes on. The paper chooses patches of one size; here each study is one.

        score_c(s) = ln(mean over voxels of H p_c) + Gumbel noise of scale 1 / beta,   beta = 100^t

    t is `pool.progress`: on a server the share of all studies that is labelled, in a simulation 0 at the first choice
    and 1 at the last.
    """

    name = "clasp_pe"
    needs = frozenset({"class_entropy"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _ClaSPPEScorer(pool, 100.0**pool.progress, generator)


class _ClaSPPEScorer(_PowerScorer):
    """Without noise it is that of all structures together: whose turn is first is drawn, too."""

    def __init__(self, pool: Pool, beta: float, generator: np.random.Generator) -> None:
        super().__init__(pool, beta, generator)
        noised = [power_noised(column, beta, generator) for column in self.by_class.T[1:]]
        # A study that holds none of the structure comes behind all that may, and not last of all.
        self._by_structure = [np.where(np.isneginf(column), self.noised - _BEHIND, column) for column in noised]
        self._turns = generator.permutation(len(self._by_structure))
        # Where studies are asked for one by one, the turns go on from one request to the next.
        self._taken = pool.taken % _PICKS_IN_A_ROW

    def scores(self) -> Floats:
        return self.noised if self._turn is None else self._by_structure[self._turn]

    def reason(self, index: int, score: float) -> str:
        if self._turn is None:
            return f"it is the turn of all structures together; {super().reason(index, score)}"
        structure, value = self.structures[self._turn], self.by_class[index, self._turn + 1]
        if not value:
            return f"it is the turn of {structure}, of which no other study may hold any"
        return f"it is the turn of {structure}, whose share of the model's mean entropy is {value:.3g} nats"

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
    """The study whose mask changes most when codes are swapped for near ones: mutual information over QPM draws.

    Of a network that was trained with dropout in the place of QPM the draws are by dropout.

        score(s) = mean over structures l of the mean of I over the voxels that may belong to l

    I is that of `vqseg.active.uncertainty.mutual_information`.
    """

    name = "perturbation"
    needs = frozenset({"disagreement"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        assert pool.disagreement is not None
        # A disagreement means little unless it is known among how many codes the draws choose.
        codes = pool.replacement_codes
        note = "" if np.isnan(codes) else f" (effective number of replacement codes: {codes:.1f})"
        words = "disagreement under perturbation"
        return _StructureScorer(pool.disagreement, tuple(pool.structures), words, note=note)
