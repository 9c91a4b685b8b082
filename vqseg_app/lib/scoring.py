"""Scoring `vqseg`: what the strategies choose by, worked out for every study ahead of the next request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from vqseg.active.sparse_signals import SparseSignals
from vqseg.config import Active
from vqseg.store import ModelVersion

from .cold_start import ColdStart
from .gathering import Gathered, gather, in_fair_order
from .live_model import LiveModel, identity_of
from .memory_guard import MemoryGuard
from .process import give_way, stop_without_server
from .score_cache import ScoreCache
from .scoring_progress import ScoringProgress, read_progress
from .selection import draws_for
from .sources import DiceOfLabels, SignalsOfImages, forget_gone_images

# Requests and trainings go first on a machine that is busy.
_NICENESS = 19


class VQSegScoring(ScoringMethod):
    """Each study is kept as soon as it is scored, so that an end at any time loses nothing.

    Nothing is written to the datastore: it is kept as one file by every process and would lose labels.
    """

    def __init__(
        self, cold_start: ColdStart, cache: ScoreCache, memory: MemoryGuard, settings: Active, folder: Path
    ) -> None:
        super().__init__("What the strategies choose by, of all studies under the live model")
        self._cold_start, self._cache, self._memory = cold_start, cache, memory
        self._settings, self._folder = settings, folder

    def info(self) -> dict[str, Any]:
        return {**super().info(), **read_progress(self._folder)}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        give_way(_NICENESS)
        draws = draws_for(request.get("strategy") or self._settings.strategy, self._settings)
        self._folder.mkdir(parents=True, exist_ok=True)
        # One at a time, also when the scoring of a server that is gone still runs.
        with FileLock(self._folder / ".lock"):
            progress = ScoringProgress(self._folder)
            with progress.running():
                scored = self._score(datastore, draws, progress)
        unlabelled = scored.of(datastore.get_unlabeled_images())
        return {"scored": len(unlabelled.found), "missing": len(unlabelled.missing), "left_out": unlabelled.left_out}

    def _score(self, datastore: Datastore, draws: int, progress: ScoringProgress) -> Gathered[SparseSignals]:
        """Score all studies; again what is there by the end and was not seen, a version or a study."""
        if self._cold_start.is_missing():
            self._cold_start.learn(datastore, stop_without_server)
        while True:
            model = self._cold_start.comparing()
            scored = self._look_at_all(model, datastore, draws, progress)
            is_live = self._cold_start.comparing().identity() == identity_of(scored.version)
            if is_live and set(datastore.list_images()) <= {*scored.found, *scored.left_out}:
                # Now that the live version has seen every study, nobody asks for what another says.
                self._cache.forget_all_but(identity_of(scored.version))
                forget_gone_images(datastore, self._cache)
                return scored

    def _look_at_all(
        self, model: LiveModel, datastore: Datastore, draws: int, progress: ScoringProgress
    ) -> Gathered[SparseSignals]:
        """Score all studies, and compare the labels with the model once that is done."""
        labelled = sorted(datastore.get_labeled_images())
        # Most strategies compare with the labelled studies, so these come first.
        studies = [*labelled, *in_fair_order(datastore.get_unlabeled_images())]

        def told(version: ModelVersion, done: int) -> None:
            stop_without_server()
            progress.tell(version, done, len(studies))

        signals = SignalsOfImages(datastore, model, self._cache, self._memory, draws)
        scored = gather(studies, signals, model, told=told)
        reviewed = labelled if scored.version.segments else []
        labels = DiceOfLabels(datastore, model, self._cache, self._memory)
        differing = gather(reviewed, labels, model, told=lambda version, _: told(version, len(studies)))
        progress.finish(scored.version, len(studies), scored.left_out, differing.left_out)
        return scored
