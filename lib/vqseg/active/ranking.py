"""The ranking of a folder's unlabelled studies by a model, with the reasons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vqseg.active.pool import Pool
from vqseg.active.strategies import make_strategy
from vqseg.active.strategy import Ranked
from vqseg.data.reading import read_image
from vqseg.data.studies import Study
from vqseg.errors import ConfigError, VQSegError
from vqseg.inference.predictor import Predictor
from vqseg.inference.signals import StudySignals
from vqseg.randomness import numpy_generator, torch_generator

__all__ = ["rank_studies"]

_OF_CODES = {"usage", "labelled_weights", "disagreement"}


def rank_studies(
    predictor: Predictor,
    studies: Iterable[Study],
    strategy: str,
    *,
    top: int | None = None,
    seed: int = 0,
    progress: float = 0.0,
) -> dict[str, Any]:
    """Rank the studies without a label, comparing with those that have one, as values for JSON.

    The first `top` are chosen one after another, each as if those before it were labelled, and no others are listed;
    without `top` all are. `progress` is the share 0..1 of the labelling that is done. A study that cannot be read is
    left out and named. Raises `ConfigError` when there is no such
    strategy or the model cannot serve it.
    """
    chosen = make_strategy(strategy, predictor.config.active)
    if _OF_CODES & chosen.needs and not predictor.network.has_codebook:
        raise ConfigError(f"strategy {strategy!r} looks at a codebook, and this model has none")
    draws = predictor.config.active.draws if "disagreement" in chosen.needs else 0
    candidates: dict[str, StudySignals] = {}
    labelled: list[StudySignals] = []
    left_out: dict[str, str] = {}
    for study in studies:
        try:
            signals = predictor.signals(read_image(study.image), draws, torch_generator(seed, "signals", study.id))
        except VQSegError as error:
            left_out[study.id] = str(error)
            continue
        if study.label is None:
            candidates[study.id] = signals
        else:
            labelled.append(signals)
    structures = sorted(predictor.labels, key=lambda name: predictor.labels[name])
    pool = Pool.of(candidates, labelled, structures=structures, progress=progress)
    ranking = chosen.rank(pool, numpy_generator(seed, "ranking"), 1 if top is None else top)
    return {
        "strategy": strategy,
        "model_version": predictor.version,
        "scored": len(candidates),
        "labelled": len(labelled),
        "left_out": left_out,
        "studies": [_as_values(place, one) for place, one in enumerate(ranking[:top], start=1)],
    }


def _as_values(place: int, one: Ranked) -> dict[str, Any]:
    return {
        "rank": place,
        "id": one.id,
        "score": one.score if np.isfinite(one.score) else None,
        "reason": one.reason,
        "parts": {part.name: part.value for part in one.parts},
    }
