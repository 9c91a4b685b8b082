"""Strategies that choose the study to label next: one small class each, in a registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vqseg.active.usage import rarefied_entropy
from vqseg.config import Active
from vqseg.errors import ConfigError

__all__ = ["STRATEGIES", "Candidate", "Ranked", "Strategy", "make_strategy"]


@dataclass(frozen=True)
class Candidate:
    """An unlabelled study; `usage` (K,) counts its codes, or is none when no model has seen it."""

    id: str
    usage: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Ranked:
    """A study's place; `reason` says in words why."""

    id: str
    score: float
    reason: str


class Strategy(ABC):
    """Ranks candidates, best first; ties by id."""

    name: ClassVar[str]
    needs_usage: ClassVar[bool] = True

    def __init__(self, settings: Active) -> None:
        self.settings = settings

    @abstractmethod
    def rank(self, candidates: Sequence[Candidate], generator: np.random.Generator) -> list[Ranked]:
        """All candidates that can be scored, best first."""


class Uniform(Strategy):
    """Every study is equally likely: plain random."""

    name = "uniform"
    needs_usage = False

    def rank(self, candidates: Sequence[Candidate], generator: np.random.Generator) -> list[Ranked]:
        ordered = sorted(candidates, key=lambda candidate: candidate.id)
        scores = generator.random(len(ordered))
        ranked = [Ranked(c.id, float(s), "drawn at random") for c, s in zip(ordered, scores, strict=True)]
        return _best_first(ranked)


class CodebookEntropy(Strategy):
    """The study with the most diverse use of the codebook: the highest rarefied entropy of its code histogram."""

    name = "codebook_entropy"

    def rank(self, candidates: Sequence[Candidate], generator: np.random.Generator) -> list[Ranked]:
        ranked = []
        for candidate in candidates:
            if candidate.usage is not None:
                score = rarefied_entropy(candidate.usage, self.settings.tokens)
                used = int((candidate.usage > 0).sum())
                ranked.append(Ranked(candidate.id, score, f"code usage entropy {score:.3f} nats, {used} codes in use"))
        return _best_first(ranked)


STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (Uniform, CodebookEntropy)}


def make_strategy(name: str, settings: Active | None = None) -> Strategy:
    """The strategy of that name. Raises `ConfigError` with the list of known ones."""
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; known strategies: {', '.join(STRATEGIES)}")
    return STRATEGIES[name](settings or Active())


def _best_first(ranked: list[Ranked]) -> list[Ranked]:
    return sorted(ranked, key=lambda one: (-one.score, one.id))
