"""The one warm model of this process: loaded when first needed, loaded anew when another version went live."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from vqseg.data.reading import Volume
from vqseg.errors import ModelError
from vqseg.inference.code_map import CodeMap, map_codes
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
        self._damaged: set[str] = set()

    def version(self) -> ModelVersion | None:
        """The version that is live now, loaded or not; instead of one that turned out damaged, the one before."""
        return next((version for version in self.store.lived() if identity_of(version) not in self._damaged), None)

    def labels(self) -> dict[str, int]:
        """Labels of the version that is loaded; empty when none is. Never waits."""
        return dict(self._loaded[1].labels) if self._loaded else {}

    def identity(self) -> str:
        """Identity of the live version. Raises `ModelError` when there is none."""
        return identity_of(self.needed_version())

    def needed_version(self) -> ModelVersion:
        """The version that is live now. Raises `ModelError` when there is none."""
        version = self.version()
        if version is None and self._damaged:
            raise ModelError("every published model is damaged: restore the folder of the models, or train anew")
        if version is None:
            raise ModelError("there is no trained model yet: label a few studies, then start a training (POST /train)")
        return version

    def predictor(self) -> Predictor:
        """The live version, loaded. Raises `ModelError` when there is none."""
        return self._current()[1]

    def predict(
        self, volume: Volume, *, with_signals: bool = False, go_on: Callable[[], None] = lambda: None
    ) -> tuple[Prediction, Predictor, str]:
        """A prediction, the predictor that made it and the identity of its model. What `go_on` raises ends it."""
        with self._working:
            identity, predictor = self._current()
            return predictor.predict(volume, with_signals=with_signals, go_on=go_on), predictor, identity

    def signals(
        self, volume: Volume, draws: int, generator: torch.Generator, *, go_on: Callable[[], None] = lambda: None
    ) -> tuple[StudySignals, str]:
        """Signals of a volume with so many QPM draws, and the identity of the model that made them."""
        with self._working:
            identity, predictor = self._current()
            return predictor.signals(volume, draws, generator, go_on=go_on), identity

    def map_codes(self, volume: Volume) -> CodeMap:
        """Which codes of the live model the middle slice of a volume is made of. Raises `ModelError`."""
        with self._working:
            return map_codes(self._current()[1], volume)

    def _current(self) -> tuple[str, Predictor]:
        with self._loading:
            while True:
                version = self.needed_version()
                identity = identity_of(version)
                if self._loaded and self._loaded[0] == identity:
                    return self._loaded
                try:
                    self._loaded = (identity, Predictor.load(version.folder, self._device))
                except ModelError as error:
                    logger.error("model version %s does not serve: %s", version.name, error)
                    self._damaged.add(identity)
                else:
                    logger.info("model version %s is loaded", version.name)


def identity_of(version: ModelVersion) -> str:
    """Name and weights of a version: a run folder that was emptied numbers its versions from the start again."""
    return f"{version.name}-{str(version.manifest.get('sha256'))[:16]}"
