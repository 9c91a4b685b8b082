"""Scoring `vqseg`: counts the codes of every study ahead of the next request for a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from .live_model import LiveModel
from .pool import usage_of
from .usage_cache import UsageCache


class VQSegScoring(ScoringMethod):
    """Nothing is written to the datastore: it is kept as one file by every process and would lose labels."""

    def __init__(self, live: LiveModel, usage: UsageCache) -> None:
        super().__init__("Code usage of the studies under the live model")
        self._live = live
        self._usage = usage

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        version = self._live.version()
        if version is not None and not version.config.model.has_codebook:
            return {"scored": 0, "missing": 0, "left_out": {}, "note": "the live model has no codebook"}
        studies = sorted(datastore.get_unlabeled_images())
        # Some strategies compare with the labelled studies.
        every = usage_of([*studies, *sorted(datastore.get_labeled_images())], datastore, self._live, self._usage)
        pool = every.of(studies)
        self._usage.forget_all_but(self._live.identity())
        return {"scored": len(pool.counts), "missing": len(pool.missing), "left_out": pool.left_out}
