"""The warm model of this process: loaded when first needed, loaded anew when another version went live; and beside it
at most one other version, the last that was asked for by name. Two, so that whoever compares a former version with the
live one, or a reader who stays with it, does not make everybody else wait while both are loaded in turn."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import torch

from vqseg.data.reading import Volume
from vqseg.errors import ModelError
from vqseg.inference.code_map import CodeMap, map_codes
from vqseg.inference.predictor import Prediction, Predictor
from vqseg.inference.signals import StudySignals
from vqseg.store import ModelStore, ModelVersion

from .errors_over_rest import UnknownError

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
        self._other: tuple[str, Predictor] | None = None
        self._damaged: set[str] = set()

    def version(self) -> ModelVersion | None:
        """The version that is live now, loaded or not; instead of one that turned out damaged, the one before."""
        return next((version for version in self.store.lived() if identity_of(version) not in self._damaged), None)

    def state(self) -> Hashable | None:
        """Changes whenever a version is made live, one that was live before among them; none without a version."""
        version = self.version()
        return None if version is None else (identity_of(version), self.store.last_change())

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

    def find(self, name: str) -> ModelVersion:
        """The version of that name, which is only ever compared with the known ones.

        Raises `UnknownError`, and `ModelError` when its manifest is damaged.
        """
        if name not in (known := self.store.names()):
            raise UnknownError("model version", name, known)
        with self._without_folder():
            return self.store.find(name)

    def is_damaged(self, version: ModelVersion) -> bool:
        """Whether a version turned out damaged when it was loaded."""
        return identity_of(version) in self._damaged

    def make_live(self, name: str) -> ModelVersion:
        """Make a version live. Raises `UnknownError`, and `ModelError` when it is damaged or segments nothing."""
        known = self.find(name)
        with self._without_folder():
            version = self.store.make_live(known.name)
        # It has just been read, and was mended if it was damaged before.
        self._damaged.discard(identity_of(version))
        return version

    def rollback(self) -> ModelVersion:
        """Make the version live that was so before. Raises `ModelError` when there is none."""
        with self._without_folder():
            version = self.store.rollback()
        self._damaged.discard(identity_of(version))
        return version

    def predictor(self, name: str | None = None) -> Predictor:
        """The live version, or the one of that name, loaded. Raises `ModelError`, and `UnknownError` for the latter."""
        return self._current(name)[1]

    def predict(
        self,
        volume: Volume,
        name: str | None = None,
        *,
        with_signals: bool = False,
        go_on: Callable[[], None] = lambda: None,
    ) -> tuple[Prediction, Predictor, str]:
        """A prediction of the live version or the one of that name, the predictor that made it and the identity of its
        model. What `go_on` raises ends it."""
        with self._working:
            identity, predictor = self._current(name)
            return predictor.predict(volume, with_signals=with_signals, go_on=go_on), predictor, identity

    def signals(
        self, volume: Volume, draws: int, generator: torch.Generator, *, go_on: Callable[[], None] = lambda: None
    ) -> tuple[StudySignals, str]:
        """Signals of a volume with so many draws of the perturbation, and the identity of the model that made them."""
        with self._working:
            identity, predictor = self._current()
            return predictor.signals(volume, draws, generator, go_on=go_on), identity

    def map_codes(self, volume: Volume) -> CodeMap:
        """Which codes of the live model the middle slice of a volume is made of. Raises `ModelError`."""
        with self._working:
            return map_codes(self._current()[1], volume)

    def unload(self) -> None:
        """Leave the memory to others; what still works with a version keeps it until it is done."""
        with self._loading:
            self._loaded = self._other = None

    def _current(self, name: str | None = None) -> tuple[str, Predictor]:
        with self._loading:
            return self._live_one() if name is None else self._named(self.find(name))

    def _live_one(self) -> tuple[str, Predictor]:
        while True:
            version = self.needed_version()
            identity = identity_of(version)
            if self._loaded and self._loaded[0] == identity:
                return self._loaded
            if self._other and self._other[0] == identity:
                # What was asked for by name is live now, and what was live may be asked for by name.
                self._loaded, self._other = self._other, self._loaded
                return self._loaded
            # Never a third one in memory, not even while this one is loaded.
            self._other = None
            if fault := self.store.pointer_fault():
                logger.error("models: %s", fault)
            with contextlib.suppress(ModelError):
                self._loaded = self._load(version)

    def _named(self, version: ModelVersion) -> tuple[str, Predictor]:
        for known in (self._loaded, self._other):
            if known and known[0] == identity_of(version):
                return known
        self._other = None
        with self._without_folder():
            self._other = self._load(version)
        return self._other

    @contextlib.contextmanager
    def _without_folder(self) -> Iterator[None]:
        """Whoever asks by name is told what is wrong with a version, and not where it lies on the server."""
        try:
            yield
        except ModelError as error:
            folder = str(self.store.folder)
            raise ModelError(str(error).replace(f"{folder}/", "").replace(f"{folder}: ", "")) from None

    def _load(self, version: ModelVersion) -> tuple[str, Predictor]:
        identity = identity_of(version)
        try:
            predictor = Predictor.load(version.folder, self._device)
        except ModelError as error:
            logger.error("model version %s does not serve: %s", version.name, error)
            self._damaged.add(identity)
            raise
        logger.info("model version %s is loaded", version.name)
        return identity, predictor


def identity_of(version: ModelVersion) -> str:
    """Name and weights of a version: a run folder that was emptied numbers its versions from the start again."""
    return f"{version.name}-{str(version.manifest.get('sha256'))[:16]}"
