"""The arms of a simulation by name: the strategies of the registry, the controls and the oracle.

A control of a strategy is called `control:strategy`, such as `shuffled:codebook_rarity`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from vqseg.active.pool import KNOWN_FROM_IMAGES, Pool
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.active.strategy import Strategy, comparable
from vqseg.config import Active
from vqseg.errors import ConfigError
from vqseg.simulation.controls import (
    Known,
    LargestForeground,
    PlugInEntropy,
    RandomByLength,
    Reversed,
    Shuffled,
)
from vqseg.simulation.rounds import Look

__all__ = ["ORACLE", "Arm", "Choice", "Knowledge", "arm_names", "control_names", "make_arm"]

ORACLE = "oracle"


@dataclass(frozen=True)
class Knowledge:
    """What an arm may know beside the pool: `slices` of every study, `dice` of the model on it (for the oracle alone;
    none before anything is labelled), and how many studies are picked at a time."""

    slices: Mapping[str, int]
    dice: Mapping[str, float]
    picks: int


@dataclass(frozen=True)
class Choice:
    """`ids` in the order in which they were picked, and the `seconds` that took.

    `agreement` is Spearman's correlation over the pool between the scores before any pick, without their noise, and
    1 - Dice of the current model: a score that finds failures is of use to a reviewer, whatever it is worth to a
    training. None where all scores, or all Dice, are the same.
    """

    ids: list[str]
    agreement: float | None
    seconds: float


@dataclass(frozen=True)
class Arm:
    """A way to choose; what it `needs` of the pool with some settings, the `codebook` by which the tokens are counted
    for it, and the `kind` of perturbation that draws for it, in the place of that of the training."""

    name: str
    make: Callable[[Active, Knowledge], Strategy]
    needs: Callable[[Active], frozenset[str]]
    codebook: str = "trained"
    kind: str | None = None

    def look(self, settings: Active) -> Look:
        """The look at the pool that the arm needs."""
        return Look(self.codebook, settings.draws if _DRAWN in self.needs(settings) else 0, self.kind)

    def choose(self, pool: Pool, settings: Active, knowledge: Knowledge, seed: int) -> Choice:
        """The studies that are labelled next, in the order in which they are picked."""
        # Before anything is labelled, who needs to know more than images say draws.
        known = bool(knowledge.dice) or self.needs(settings) <= KNOWN_FROM_IMAGES
        strategy = self.make(settings, knowledge) if known else make_strategy("uniform", settings)
        begin = time.perf_counter()
        picked = strategy.rank(pool, np.random.default_rng(seed), knowledge.picks).ids[: knowledge.picks]
        seconds = time.perf_counter() - begin
        scores = comparable(strategy.scorer(pool, np.random.default_rng(seed)).noiseless())
        errors = np.array([1 - knowledge.dice.get(study, np.nan) for study in pool.ids])
        differ = bool(knowledge.dice) and min(len(np.unique(scores)), len(np.unique(errors))) > 1
        return Choice(picked, float(spearmanr(scores, errors).statistic) if differ else None, seconds)


def _oracle(settings: Active, knowledge: Knowledge) -> Strategy:
    return Known(settings, {study: 1 - dice for study, dice in knowledge.dice.items()}, "its Dice is the lowest")


def _longest(settings: Active, knowledge: Knowledge) -> Strategy:
    return Known(settings, knowledge.slices, "it has {score:.0f} slices")


_ALONE: dict[str, Callable[[Active, Knowledge], Strategy]] = {
    "random_by_length": lambda settings, known: RandomByLength(settings, known.slices, known.picks),
    "length": _longest,
    LargestForeground.name: lambda settings, known: LargestForeground(settings),
    "plug_in_entropy": lambda settings, known: PlugInEntropy(settings),
    ORACLE: _oracle,
}
# What a model alone can tell; all else is known of images.
_NEEDS = {ORACLE: frozenset({"dice"}), LargestForeground.name: LargestForeground.needs}
_CHANGED: dict[str, Callable[[Strategy], Strategy]] = {"shuffled": Shuffled, "reversed": Reversed}
_COUNTED = ("untrained", "k_means")
_DRAWN, _DROPOUT = "disagreement", "dropout"


def arm_names(default: str | None) -> list[str]:
    """All strategies, and the controls, those of a strategy for the `default` one; without one none of these. Draws by
    dropout are made on request alone."""
    return [*STRATEGIES, *_ALONE, *(_controls_of(default) if default else ())]


def control_names(default: str) -> list[str]:
    """The arms that must not beat `uniform`, those of a strategy for the `default` one."""
    return ["length", "plug_in_entropy", *_controls_of(default, ("untrained",))]


def _controls_of(strategy: str, counted: Sequence[str] = _COUNTED) -> list[str]:
    """Those of a strategy; with other codes than its own where it counts any."""
    return [f"{control}:{strategy}" for control in (*_CHANGED, *(counted if _counts_codes(strategy) else ()))]


def _counts_codes(strategy: str) -> bool:
    return bool(STRATEGIES[strategy].needs & {"usage", "code_weights"})


def make_arm(name: str) -> Arm:
    """The arm of that name. Raises `ConfigError` with the list of known ones."""
    control, _, strategy = name.rpartition(":")
    if name in _ALONE:
        return Arm(name, _ALONE[name], lambda settings: _NEEDS.get(name, frozenset()))
    sensible = strategy in STRATEGIES and control in ("", *_CHANGED, *_COUNTED, _DROPOUT)
    # Nothing changes for a strategy that counts no codes, or draws nothing.
    if sensible and control in _COUNTED:
        sensible = _counts_codes(strategy)
    elif sensible and control == _DROPOUT:
        sensible = _DRAWN in STRATEGIES[strategy].needs
    if not sensible:
        controls = ", ".join(f"{control}:STRATEGY" for control in (*_CHANGED, *_COUNTED, _DROPOUT))
        raise ConfigError(f"unknown arm {name!r}; known: {', '.join([*STRATEGIES, *_ALONE])}, {controls}")

    def needs(settings: Active) -> frozenset[str]:
        return make_strategy(strategy, settings).needs

    if control in _CHANGED:
        return Arm(name, lambda settings, known: _CHANGED[control](make_strategy(strategy, settings)), needs)
    codebook = control if control in _COUNTED else "trained"
    kind = control if control == _DROPOUT else None
    return Arm(name, lambda settings, known: make_strategy(strategy, settings), needs, codebook, kind)
