"""What a strategy is: one small class that scores a pool, and one way to rank by its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from vqseg.active.pool import Pool
from vqseg.config import Active

__all__ = [
    "FixedScorer",
    "Part",
    "Ranked",
    "Ranking",
    "Scorer",
    "Strategy",
    "comparable",
    "largest_parts",
    "mean_of_present",
    "nan_last",
]

Floats = NDArray[np.float64]
_PARTS_SHOWN = 3
_DECIMALS = 12
_OF_CODES = {"usage", "code_weights", "labelled_weights", "disagreement"}


@dataclass(frozen=True)
class Part:
    """One part of a score, such as a code or a structure, and what it adds."""

    name: str
    value: float


@dataclass(frozen=True)
class Ranked:
    """A study's place: its `score` when it was picked, the `parts` of it that weigh most, and the `reason` in words."""

    id: str
    score: float
    reason: str
    parts: tuple[Part, ...] = ()

    def as_values(self, rank: int | None) -> dict[str, Any]:
        """For JSON, with the place in its ranking, none where it has none; a score that is not known is none."""
        return {
            "rank": rank,
            "id": self.id,
            "score": float(self.score) if np.isfinite(self.score) else None,
            "reason": self.reason,
            "parts": {part.name: part.value for part in self.parts},
        }


class Scorer(ABC):
    """Scores of one pool, which may change with every study that is taken."""

    @abstractmethod
    def scores(self) -> Floats:
        """Score (S,) of every study given what was taken so far; nan for a study that cannot be scored."""

    def noiseless(self) -> Floats:
        """The scores (S,) without the noise that was drawn: all the same where nothing else is known."""
        return self.scores()

    def take(self, index: int) -> None:
        """Count the study at `index` among the labelled ones."""
        return

    @abstractmethod
    def reason(self, index: int, score: float) -> str:
        """Why the study has this score, in words."""

    def parts(self, index: int) -> tuple[Part, ...]:
        """What the score of the study is made of, the weightiest first."""
        return ()


class FixedScorer(Scorer):
    """Scores (S,) that do not depend on what was taken; `words` says what the number is. Where they were drawn,
    `noiseless` are what they were drawn by."""

    def __init__(self, scores: Floats, words: str, noiseless: Floats | None = None) -> None:
        self._scores, self._words = scores, words
        self._noiseless = scores if noiseless is None else noiseless

    def scores(self) -> Floats:
        return self._scores

    def noiseless(self) -> Floats:
        return self._noiseless

    def reason(self, index: int, score: float) -> str:
        return self._words.format(score=score)


class Ranking(Sequence[Ranked]):
    """Studies, best first. Why a study that was not picked has its place is worked out when it is asked for: most of
    ten thousand are never looked at.

    Args: `order` of the rows of the pool; `scores` (S,) after the last pick; `picked`, what the first ones are.
    """

    def __init__(
        self, pool: Pool, scorer: Scorer, order: Sequence[int], scores: Floats, picked: Sequence[Ranked]
    ) -> None:
        self._pool, self._scorer, self._order, self._scores, self._picked = pool, scorer, order, scores, picked

    @property
    def ids(self) -> list[str]:
        """Ids, best first."""
        return [self._pool.ids[index] for index in self._order]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> Ranked: ...
    @overload
    def __getitem__(self, place: slice) -> list[Ranked]: ...
    def __getitem__(self, place: int | slice) -> Ranked | list[Ranked]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        if place < len(self._picked):
            return self._picked[place]
        index = self._order[place]
        return explain(self._pool, self._scorer, index, self._scores[index])


class Strategy(ABC):
    """Chooses the study to label next. `needs` names the fields of the pool that it looks at."""

    name: ClassVar[str]
    needs: frozenset[str] = frozenset()

    def __init__(self, settings: Active) -> None:
        self.settings = settings

    def needs_codebook(self) -> bool:
        """Whether it looks at something that only a network with a codebook gives."""
        return bool(self.needs & _OF_CODES)

    @abstractmethod
    def scorer(self, pool: Pool, generator: np.random.Generator) -> Scorer:
        """The scores of a pool that has everything that this strategy needs; `generator` gives every draw."""

    def rank(self, pool: Pool, generator: np.random.Generator, picks: int = 1) -> Ranking:
        """All studies of the pool, best first; ties by id, studies that cannot be scored last.

        The first `picks` are chosen one after another, each as if those before it were labelled; the others follow by
        their scores after that.
        """
        if not pool.ids:
            return Ranking(pool, FixedScorer(np.zeros(0), ""), [], np.zeros(0), [])
        scorer, taken = self.scorer(pool, generator), np.zeros(len(pool.ids), bool)
        order: list[int] = []
        picked: list[Ranked] = []
        for _ in range(min(picks, len(pool.ids))):
            scores = comparable(scorer.scores())
            free = np.flatnonzero(~taken)
            best = int(free[scores[free].argmax()])
            order.append(best)
            picked.append(explain(pool, scorer, best, scores[best]))
            taken[best] = True
            scorer.take(best)
        scores = comparable(scorer.scores())
        rest = [int(index) for index in np.argsort(-scores, kind="stable") if not taken[index]]
        return Ranking(pool, scorer, order + rest, scores, picked)


def explain(pool: Pool, scorer: Scorer, index: int, score: float) -> Ranked:
    """The study at `index` with its score, and why it has it."""
    if np.isneginf(score):
        return Ranked(pool.ids[index], float(score), "it cannot be scored")
    return Ranked(pool.ids[index], float(score), scorer.reason(index, float(score)), scorer.parts(index))


def comparable(scores: Floats) -> Floats:
    """Scores (S,) to rank by: those that only the order of a sum makes different are equal, so that ids decide."""
    return nan_last(np.round(scores, _DECIMALS))


def nan_last(scores: Floats) -> Floats:
    """Scores of which those that are unknown are lower than any other."""
    return np.where(np.isnan(scores), -np.inf, scores)


def largest_parts(names: Sequence[str], values: Floats) -> tuple[Part, ...]:
    """The parts that weigh most, the largest first; what is nan takes no part."""
    values = nan_last(values)
    order = [int(index) for index in np.argsort(-values, kind="stable")[:_PARTS_SHOWN]]
    return tuple(Part(names[index], float(values[index])) for index in order if np.isfinite(values[index]))


def mean_of_present(values: Floats) -> Floats:
    """Mean of each row over what is not nan; nan where nothing is."""
    present = np.isfinite(values)
    count = present.sum(1)
    total = np.where(present, values, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
