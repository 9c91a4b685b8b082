"""The ranking of a folder's unlabelled studies by a model, with the reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqseg.active.pool import Pool
from vqseg.active.review import review_pool
from vqseg.active.sparse_signals import SparseSignals
from vqseg.active.strategies import REVIEWS, make_strategy
from vqseg.active.strategy import Strategy
from vqseg.data.reading import read_image, read_mask
from vqseg.data.studies import Study
from vqseg.errors import ConfigError, VQSegError
from vqseg.inference.predictor import Predictor
from vqseg.metrics import dice_by_structure
from vqseg.randomness import numpy_generator, torch_generator

__all__ = ["rank_studies"]


def rank_studies(
    predictor: Predictor,
    studies: Iterable[Study],
    strategy: str,
    *,
    top: int | None = None,
    seed: int = 0,
    progress: float = 0.0,
) -> dict[str, Any]:
    """Rank the studies without a label, comparing with those that have one, as values for JSON; the strategy
    `disagreement` ranks those that have one.

    The first `top` are chosen one after another, each as if those before it were labelled, and no others are listed;
    without `top` all are. `progress` is the share 0..1 of the labelling that is done. A study that cannot be read is
    left out and named. Raises `ConfigError` when there is no such strategy or the model cannot serve it.
    """
    chosen = make_strategy(strategy, predictor.config.active)
    if chosen.needs_codebook() and not predictor.network.has_codebook:
        raise ConfigError(f"strategy {strategy!r} looks at a codebook, and this model has none")
    looked_at = _look_at_labels if strategy in REVIEWS else _look_at_images if chosen.needs else _open_images
    seen = looked_at(predictor, studies, chosen, seed, progress)
    ranking = chosen.rank(seen.pool, numpy_generator(seed, "ranking", strategy), 1 if top is None else top)
    return {
        "strategy": strategy,
        "model_version": predictor.version,
        "scored": len(seen.pool.ids),
        "labelled": seen.labelled,
        "left_out": seen.left_out,
        "studies": [one.as_values(place) for place, one in enumerate(ranking[:top], start=1)],
    }


@dataclass(frozen=True)
class _Seen:
    """The pool, the number of `labelled` studies, and the reason why others were left out, by id."""

    pool: Pool
    labelled: int
    left_out: dict[str, str]


def _open_images(
    predictor: Predictor, studies: Iterable[Study], strategy: Strategy, seed: int, progress: float
) -> _Seen:
    """For a strategy that needs to know nothing: somebody must be able to open the study, that is all."""
    candidates, labelled, left_out = [], 0, {}
    for study in studies:
        try:
            read_image(study.image)
        except VQSegError as error:
            left_out[study.id] = str(error)
            continue
        if study.label is None:
            candidates.append(study.id)
        else:
            labelled += 1
    return _Seen(Pool(sorted(candidates), progress=progress), labelled, left_out)


def _look_at_images(
    predictor: Predictor, studies: Iterable[Study], strategy: Strategy, seed: int, progress: float
) -> _Seen:
    draws = predictor.config.active.draws if "disagreement" in strategy.needs else 0
    candidates: dict[str, SparseSignals] = {}
    labelled: list[SparseSignals] = []
    left_out: dict[str, str] = {}
    for study in studies:
        try:
            signals = predictor.signals(read_image(study.image), draws, torch_generator(seed, "signals", study.id))
        except VQSegError as error:
            left_out[study.id] = str(error)
            continue
        if study.label is None:
            candidates[study.id] = SparseSignals.of(signals)
        else:
            labelled.append(SparseSignals.of(signals))
    structures = tuple(predictor.labels)
    pool = Pool.of(
        candidates,
        labelled,
        structures=structures,
        progress=progress,
        taken=len(labelled),
        needs=strategy.needs,
        replacement_codes=predictor.replacement_codes,
    )
    return _Seen(pool, len(labelled), left_out)


def _look_at_labels(
    predictor: Predictor, studies: Iterable[Study], strategy: Strategy, seed: int, progress: float
) -> _Seen:
    found: dict[str, NDArray[np.float64]] = {}
    left_out: dict[str, str] = {}
    for study in studies:
        if study.label is None:
            continue
        try:
            volume = read_image(study.image)
            label = read_mask(study.label, volume.grid, predictor.labels)
            found[study.id] = dice_by_structure(predictor.predict(volume).mask, label, predictor.labels)
        except VQSegError as error:
            left_out[study.id] = str(error)
    return _Seen(review_pool(found, tuple(predictor.labels)), len(found), left_out)
