"""Signals of studies that no model looked at, and the rankings of pools of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from vqseg.active.pool import Pool
from vqseg.active.strategies import make_strategy
from vqseg.active.strategy import Ranked
from vqseg.config import Active
from vqseg.inference.signals import StudySignals

quick = settings(max_examples=15, deadline=None)
STRUCTURES = ("left", "right")
CODES, WIDTH = 6, 3


def signals(
    usage: Any = (4, 4, 0, 0, 0, 0), entropy: Any = (0.1, 0.1), foreground: Any = (0.2, 0.2), **others: Any
) -> StudySignals:
    counts = np.array(usage, np.int64)
    given = {
        "foreground_usage": counts.astype(float),
        "features": np.zeros(WIDTH),
        "disagreement": np.array(entropy, float),
        "class_entropy": np.append(0.0, np.nan_to_num(np.array(entropy, float))),
    }
    given |= {name: np.array(value, float) for name, value in others.items()}
    return StudySignals(counts, entropy=np.array(entropy, float), foreground=np.array(foreground, float), **given)


def some_signals(seed: int) -> StudySignals:
    """Anything a model may say of a study, such as that it holds nothing at all."""
    draw = np.random.default_rng(seed)
    missing = draw.random(2) < 0.2
    nats = np.where(missing, np.nan, draw.random((2, 2)))
    return signals(
        draw.integers(0, 30, CODES) * (draw.random(CODES) < 0.7),
        nats[0],
        np.where(missing, 0, draw.random(2)),
        foreground_usage=draw.random(CODES),
        features=draw.integers(0, 3, WIDTH),
        disagreement=nats[1],
    )


pools = st.builds(
    lambda studies, labelled, progress: Pool.of(
        {name: some_signals(seed) for name, seed in studies.items()},
        map(some_signals, labelled),
        structures=STRUCTURES,
        progress=progress,
    ),
    st.dictionaries(st.text("abc1", min_size=1, max_size=3), st.integers(0, 10**6), max_size=7),
    st.lists(st.integers(0, 10**6), max_size=3),
    st.floats(0, 1),
)


def rank(name: str, pool: Pool, picks: int = 1, seed: int = 0, **options: Any) -> list[Ranked]:
    ranking = make_strategy(name, Active(**options)).rank(pool, np.random.default_rng(seed), picks)
    assert ranking.ids == [one.id for one in ranking]
    assert ranking[len(ranking) :] == []
    return list(ranking)


def order(name: str, pool: Pool, picks: int = 1, **options: Any) -> list[str]:
    return [one.id for one in rank(name, pool, picks, **options)]
