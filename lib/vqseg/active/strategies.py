"""The registry of strategies that choose the study to label next, and of those that choose a label to look at again."""

from __future__ import annotations

from vqseg.active.at_random import ForegroundRandom, Uniform
from vqseg.active.balanced import CodebookBalanced
from vqseg.active.batches import StochasticBatches
from vqseg.active.by_codes import CodebookCoverage, CodebookEntropy, CodebookRarity
from vqseg.active.by_features import Coreset, MaxHerding, Typical
from vqseg.active.by_uncertainty import ClaSPPE, Perturbation, PowerEntropy, PredictiveEntropy
from vqseg.active.review import Disagreement
from vqseg.active.strategy import Strategy
from vqseg.config import Active
from vqseg.errors import ConfigError

__all__ = ["REVIEWS", "STRATEGIES", "make_strategy"]

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        CodebookEntropy,
        CodebookRarity,
        CodebookCoverage,
        CodebookBalanced,
        Perturbation,
        Uniform,
        ForegroundRandom,
        PredictiveEntropy,
        PowerEntropy,
        ClaSPPE,
        Coreset,
        Typical,
        MaxHerding,
        StochasticBatches,
    )
}

# These rank labelled studies.
REVIEWS: dict[str, type[Strategy]] = {Disagreement.name: Disagreement}


def make_strategy(name: str, settings: Active | None = None) -> Strategy:
    """The strategy of that name. Raises `ConfigError` with the list of known ones."""
    known, settings = STRATEGIES | REVIEWS, settings or Active()
    if name not in known:
        raise ConfigError(f"unknown strategy {name!r}; known strategies: {', '.join(known)}")
    if name == StochasticBatches.name:
        return StochasticBatches(settings, _base_of_batches(settings))
    return known[name](settings)


def _base_of_batches(settings: Active) -> Strategy:
    base, others = settings.batches_of, [name for name in STRATEGIES if name != StochasticBatches.name]
    if base not in others:
        raise ConfigError(f"active.batches_of: batches cannot be chosen by {base!r}; they can by: {', '.join(others)}")
    return make_strategy(base, settings)
