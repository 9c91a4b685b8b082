"""The library's strategies as those of MONAI Label, each under its own name and the default one also as `random`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from vqseg.active.strategies import STRATEGIES, Candidate, Uniform, make_strategy
from vqseg.config import Active
from vqseg.data.reading import read_image
from vqseg.errors import ImageError

from .errors_over_rest import UnknownError
from .live_model import LiveModel
from .pacs import PACSAwayError, PACSError
from .pool import PoolUsage, usage_of
from .reservations import Reservations
from .usage_cache import UsageCache

logger = logging.getLogger(__name__)
UNIFORM = Uniform.name
ANONYMOUS = "anonymous"


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
        open_studies = sorted(set(datastore.get_unlabeled_images()) - self._reservations.of_others(client))
        if not open_studies:
            return {}
        name, pool, note = self._counted(open_studies, datastore)
        candidates = [Candidate(study, pool.counts.get(study)) for study in (pool.counts or open_studies)]
        ranking = make_strategy(name, self._settings).rank(candidates, np.random.default_rng())
        remaining = [entry.id for entry in ranking]
        while (chosen := self._reservations.take_first(remaining, client)) is not None:
            if chosen in pool.counts or is_readable(datastore, chosen):
                break
            remaining.remove(chosen)
        if chosen is None:
            return {}
        rank, entry = next((rank, entry) for rank, entry in enumerate(ranking, start=1) if entry.id == chosen)
        version = self._live.version()
        return {
            "id": chosen,
            "strategy_used": name,
            "score": float(entry.score) if np.isfinite(entry.score) else None,
            "rank": rank,
            "reason": entry.reason,
            "scored": len(pool.counts),
            "unlabelled": len(open_studies),
            "missing": len(pool.missing),
            "model_version": version.name if version else None,
            **({"note": note} if note else {}),
        }

    def _counted(self, studies: list[str], datastore: Datastore) -> tuple[str, PoolUsage, str]:
        """The strategy to use, the code usage it needs, and what the client should know about it."""
        if not STRATEGIES[self.name].needs_usage:
            return self.name, PoolUsage(), ""
        version = self._live.version()
        if version is None:
            return UNIFORM, PoolUsage(), f"there is no trained model yet: chosen by {UNIFORM} instead of {self.name}"
        if not version.config.model.has_codebook:
            return UNIFORM, PoolUsage(), f"the live model has no codebook: chosen by {UNIFORM} instead of {self.name}"
        pool = usage_of(studies, datastore, self._live, self._usage, self._seconds)
        notes = []
        if pool.missing:
            notes.append(f"{len(pool.missing)} studies are not scored yet and took no part")
        if pool.left_out:
            notes.append(f"left out: {'; '.join(pool.left_out.values())}")
        if not pool.counts:
            notes.append(f"no study is scored: chosen by {UNIFORM} instead of {self.name}")
        return (self.name if pool.counts else UNIFORM), pool, "; ".join(notes)


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
