"""The one warm model of this process: loaded when first needed, loaded anew when another version went live."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import torch

from vqseg.data.reading import Volume
from vqseg.errors import ModelError
from vqseg.inference.predictor import Prediction, Predictor
from vqseg.inference.signals import StudySignals
from vqseg.store import ModelStore, ModelVersion

logger = logging.getLogger(__name__)


class LiveModel:
    """Thread-safe; one volume at a time, so that memory does not grow with the number of clients."""

    def __init__(self, run: Path, device: str) -> None:
        self.run = run
        self.store = ModelStore(run / "models")
        self._device = device
        self._loading = threading.Lock()
        self._working = threading.Lock()
        self._loaded: tuple[str, Predictor] | None = None

    def version(self) -> ModelVersion | None:
        """The version that is live now, loaded or not."""
        return self.store.live()

    def labels(self) -> dict[str, int]:
        """Labels of the version that is loaded; empty when none is. Never waits."""
        return dict(self._loaded[1].labels) if self._loaded else {}

    def identity(self) -> str:
        """Identity of the live version. Raises `ModelError` when there is none."""
        return identity_of(self.needed_version())

    def needed_version(self) -> ModelVersion:
        """The version that is live now. Raises `ModelError` when there is none."""
        version = self.version()
        if version is None:
            raise ModelError("there is no trained model yet: label a few studies, then start a training (POST /train)")
        return version

    def predictor(self) -> Predictor:
        """The live version, loaded. Raises `ModelError` when there is none."""
        return self._current()[1]

    def predict(self, volume: Volume, *, with_signals: bool = False) -> tuple[Prediction, Predictor, str]:
        """A prediction, the predictor that made it and the identity of its model."""
        with self._working:
            identity, predictor = self._current()
            return predictor.predict(volume, with_signals=with_signals), predictor, identity

    def signals(self, volume: Volume, draws: int, generator: torch.Generator) -> tuple[StudySignals, str]:
        """Signals of a volume with so many QPM draws, and the identity of the model that made them."""
        with self._working:
            identity, predictor = self._current()
            return predictor.signals(volume, draws, generator), identity

    def _current(self) -> tuple[str, Predictor]:
        version = self.needed_version()
        identity = identity_of(version)
        with self._loading:
            if self._loaded is None or self._loaded[0] != identity:
                self._loaded = (identity, Predictor.load(version.folder, self._device))
                logger.info("model version %s is loaded", version.name)
            return self._loaded


def identity_of(version: ModelVersion) -> str:
    """Name and weights of a version: a run folder that was emptied numbers its versions from the start again."""
    return f"{version.name}-{str(version.manifest.get('sha256'))[:16]}"
