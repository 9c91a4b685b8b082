"""Strategies by the use of the codebook: diversity, rarity among the labels, and coverage."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vqseg.active.pool import Pool
from vqseg.active.scores import code_density, coverage_gains, density_ratio
from vqseg.active.strategy import FixedScorer, Part, Scorer, Strategy, largest_parts
from vqseg.active.usage import rarefied_entropies, rarefied_parts
from vqseg.config import Active

__all__ = ["CodebookCoverage", "CodebookEntropy", "CodebookRarity"]

Floats = NDArray[np.float64]


class CodebookEntropy(Strategy):
    """The study with the most diverse use of the codebook: the highest rarefied entropy of its code histogram."""

    name = "codebook_entropy"
    needs = frozenset({"usage"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _EntropyScorer(pool, self.settings.tokens)


class _EntropyScorer(FixedScorer):
    def __init__(self, pool: Pool, tokens: int) -> None:
        assert pool.usage is not None
        known = pool.rarefied_entropy if pool.rarefied_tokens == tokens else None
        scores = rarefied_entropies(pool.usage, tokens) if known is None else known
        super().__init__(scores, "its codes are used diversely: an entropy of {score:.3f} nats")
        self._usage, self._tokens = pool.usage, tokens

    def parts(self, index: int) -> tuple[Part, ...]:
        added = rarefied_parts(self._usage[[index]], self._tokens)
        return largest_parts([f"code {code}" for code in added.indices], added.data)


class _CodeScorer(Scorer):
    """Sparse `weights` (S, K) of codes, and those of the `labelled` studies (K,), which grow with what is taken."""

    def __init__(self, pool: Pool, settings: Active) -> None:
        assert pool.code_weights is not None
        assert pool.labelled_weights is not None
        self.weights, self.labelled, self.settings = pool.code_weights, pool.labelled_weights, settings
        totals = self.weights.sum(0, dtype=np.float64) + self.labelled
        self.in_use = totals > 0
        self.totals = totals
        self.pool_density = code_density(totals, self.in_use, settings.smoothing)

    def take(self, index: int) -> None:
        self.labelled = self.labelled + self.weights[[index]].todense()[0]

    @abstractmethod
    def by_code(self, weights: sparse.csr_array) -> sparse.csr_array:
        """What each code adds to the score of studies with these `weights` (S, K)."""

    def scores(self) -> Floats:
        return self.by_code(self.weights).sum(1)

    def parts(self, index: int) -> tuple[Part, ...]:
        added = self.by_code(self.weights[[index]])
        return largest_parts([f"code {code}" for code in added.indices], added.data)


class CodebookRarity(Strategy):
    """The study whose codes are typical of all studies and missing from the labelled ones."""

    name = "codebook_rarity"
    needs = frozenset({"code_weights", "labelled_weights"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _RarityScorer(pool, self.settings)


class _RarityScorer(_CodeScorer):
    """D(s) = sum_k p_s(k) ln(f_P(k) / f_L(k)), with f_L as it is after every pick."""

    def by_code(self, weights: sparse.csr_array) -> sparse.csr_array:
        labelled = code_density(self.labelled, self.in_use, self.settings.smoothing)
        return density_ratio(weights, self.pool_density, labelled)

    def scores(self) -> Floats:
        # A study in which nothing is foreground says nothing about its codes.
        return np.where(self.weights.sum(1) > 0, super().scores(), np.nan)

    def reason(self, index: int, score: float) -> str:
        return f"its codes are {np.exp(score):.2f} times as frequent among all studies as among the labelled ones"


class CodebookCoverage(Strategy):
    """The study that adds most to the codes of which the labelled studies hold enough."""

    name = "codebook_coverage"
    needs = frozenset({"code_weights", "labelled_weights"})

    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        return _CoverageScorer(pool, self.settings)


class _CoverageScorer(_CodeScorer):
    """F(L + s) - F(L) with F(A) = sum_k f_P(k) min(1, c_A(k) / m).

    m is what `active.enough_studies` studies have of a code on average. A number of tokens would be another lesson for
    every size of image and number of codes.
    """

    def __init__(self, pool: Pool, settings: Active) -> None:
        super().__init__(pool, settings)
        assert pool.labelled_features is not None
        studies, codes = len(pool.ids) + len(pool.labelled_features), max(1, np.count_nonzero(self.in_use))
        self.enough = settings.enough_studies * self.totals.sum() / (studies * codes) or 1.0

    def by_code(self, weights: sparse.csr_array) -> sparse.csr_array:
        return coverage_gains(weights, self.labelled, self.pool_density, self.enough)

    def reason(self, index: int, score: float) -> str:
        return f"{score:.1%} of the codes' use comes to be covered by labelled studies"
