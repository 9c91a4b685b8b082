"""The library's strategies as those of MONAI Label, each under its own name and the default one also as `random`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from vqseg.active.at_random import Uniform
from vqseg.active.pool import Pool
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.config import Active
from vqseg.data.reading import read_image
from vqseg.errors import ConfigError, ImageError

from .errors_over_rest import UnknownError
from .live_model import LiveModel
from .pacs import PACSAwayError, PACSError
from .pool import PoolUsage, usage_of
from .reservations import Reservations
from .usage_cache import UsageCache

logger = logging.getLogger(__name__)
UNIFORM = Uniform.name
ANONYMOUS = "anonymous"
# Of a study the server keeps its code usage and nothing else.
SERVED = [name for name, strategy in STRATEGIES.items() if strategy.needs <= {"usage", "labelled_weights"}]


@dataclass
class _Counted:
    """The strategy to use, the code usage it needs, and what the client should know about it."""

    strategy: str
    candidates: PoolUsage = field(default_factory=PoolUsage)
    labelled: PoolUsage = field(default_factory=PoolUsage)
    note: str = ""


class NextStudy(Strategy):
    """Ranks the unlabelled studies and reserves the best one that no other client holds."""

    def __init__(
        self,
        name: str,
        settings: Active,
        live: LiveModel,
        usage: UsageCache,
        reservations: Reservations,
        seconds: float,
    ) -> None:
        super().__init__(describe(name))
        self.name = name
        self._settings = settings
        self._live = live
        self._usage = usage
        self._reservations = reservations
        self._seconds = seconds

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """`{}` when no study is left, which is what OHIF expects."""
        client = str(request.get("client_id") or ANONYMOUS)
        unlabelled, held = set(datastore.get_unlabeled_images()), self._reservations.of_others(client)
        open_studies = sorted(unlabelled - held)
        if not open_studies:
            return {}
        counted = self._counted(open_studies, sorted(unlabelled & held), datastore)
        pool = counted.candidates
        known = Pool.of_usage(pool.counts, counted.labelled.counts.values()) if pool.counts else Pool(open_studies)
        ranking = make_strategy(counted.strategy, self._settings).rank(known, np.random.default_rng())
        remaining = ranking.ids
        while (chosen := self._reservations.take_first(remaining, client)) is not None:
            if chosen in pool.counts or is_readable(datastore, chosen):
                break
            remaining.remove(chosen)
        if chosen is None:
            return {}
        place = ranking.ids.index(chosen)
        entry = ranking[place]
        version = self._live.version()
        return {
            "id": chosen,
            "strategy_used": counted.strategy,
            "score": float(entry.score) if np.isfinite(entry.score) else None,
            "rank": place + 1,
            "reason": entry.reason,
            "parts": {part.name: part.value for part in entry.parts},
            "scored": len(pool.counts),
            "unlabelled": len(open_studies),
            "missing": len(pool.missing),
            "model_version": version.name if version else None,
            **({"note": counted.note} if counted.note else {}),
        }

    def _counted(self, studies: list[str], held: list[str], datastore: Datastore) -> _Counted:
        """Counts of the open `studies`, and of those that are labelled or, being `held` by others, soon will be."""
        needs = STRATEGIES[self.name].needs
        if not needs:
            return _Counted(self.name)
        version = self._live.version()
        if version is None:
            return _Counted(UNIFORM, note=f"there is no trained model yet: chosen by {UNIFORM} instead of {self.name}")
        if not version.config.model.has_codebook:
            return _Counted(UNIFORM, note=f"the live model has no codebook: chosen by {UNIFORM} instead of {self.name}")
        # In one go, so that all are counted by one model; the labelled first, for without them every study looks new.
        labelled = sorted([*datastore.get_labeled_images(), *held]) if "labelled_weights" in needs else []
        counted = usage_of([*labelled, *studies], datastore, self._live, self._usage, self._seconds)
        pool, known = counted.of(studies), counted.of(labelled)
        if known.missing:
            late = f"{len(known.missing)} labelled studies are not scored yet"
            return _Counted(UNIFORM, note=f"{late}: chosen by {UNIFORM} instead of {self.name}")
        notes = []
        if pool.missing:
            notes.append(f"{len(pool.missing)} studies are not scored yet and took no part")
        if pool.left_out:
            notes.append(f"left out: {'; '.join(pool.left_out.values())}")
        if not pool.counts:
            notes.append(f"no study is scored: chosen by {UNIFORM} instead of {self.name}")
        return _Counted(self.name if pool.counts else UNIFORM, pool, known, "; ".join(notes))


def served_strategy(name: str) -> str:
    """The name, where it is one of a strategy that the server offers. Raises `ConfigError` with the list of these."""
    if name not in SERVED:
        raise ConfigError(f"active.strategy: the server has no strategy {name!r}; it has: {', '.join(SERVED)}")
    return name


def is_readable(datastore: Datastore, image: str) -> bool:
    """Whether somebody can open the image that is about to be handed out."""
    try:
        read_image(Path(datastore.get_image_uri(image)))
    except PACSAwayError:
        raise
    except (ImageError, PACSError, UnknownError) as error:
        logger.warning("not handed out: %s", error)
        return False
    return True


def describe(name: str) -> str:
    """First line of the strategy's own documentation."""
    return (STRATEGIES[name].__doc__ or name).strip().splitlines()[0]
