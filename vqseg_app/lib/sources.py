"""What can be known of one study: its signals, or how far its label is from the live model's mask."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from monailabel.interfaces.datastore import Datastore

from vqseg.active.sparse_signals import SparseSignals
from vqseg.data.reading import Volume, read_mask
from vqseg.errors import ImageError
from vqseg.metrics import dice_by_structure
from vqseg.randomness import torch_generator

from .errors_over_rest import UnknownError
from .labels import FINAL
from .live_model import LiveModel
from .memory_guard import MemoryGuard
from .pacs_datastore import PACSStudies
from .process import stop_without_server
from .score_cache import ScoreCache
from .work_queue import stop_if_abandoned

T = TypeVar("T")


class Source(ABC, Generic[T]):
    """Knows or works out one thing of a study."""

    def __init__(self, datastore: Datastore, live: LiveModel, cache: ScoreCache, memory: MemoryGuard) -> None:
        self.datastore, self.live, self.cache, self.memory = datastore, live, cache, memory

    @abstractmethod
    def known(self, model: str, study: str) -> T | None:
        """What is in the cache; none when it is not, or when an image would have to be fetched for it."""

    @abstractmethod
    def made(self, study: str) -> tuple[T, str]:
        """What the live model says, kept in the cache, and the identity of this model."""

    def image(self, study: str) -> Path:
        """File of an image, fetched when it is in a PACS. Raises `UnknownError`."""
        return image_file(self.datastore, study, self.cache)

    def volume(self, image: Path) -> Volume:
        """An image that the live model is to look at. Raises `TooLargeError` and `ImageError`."""
        return self.memory.read(image, self.live.predictor().config)

    def content(self, study: str) -> str | None:
        """The checksum of an image; none when the image would have to be fetched, or read as a whole, to know."""
        if isinstance(self.datastore, PACSStudies):
            return self.cache.checksums.of_series(self.datastore.image_state(study))
        return self.cache.checksums.known(self.image(study))

    def need_unchanged(self, image: Path, content: str) -> None:
        """Raises `ImageError` when an image is not what it was: what is known of it must not be kept for the new
        one."""
        try:
            changed = self.cache.checksums.of(image) != content
        except FileNotFoundError:
            # One of a PACS had to make room for others meanwhile.
            changed = not isinstance(self.datastore, PACSStudies)
        if changed:
            raise ImageError(image, "it changed while it was looked at")


class SignalsOfImages(Source[SparseSignals]):
    """Args: QPM `draws`, 0 for none."""

    def __init__(
        self, datastore: Datastore, live: LiveModel, cache: ScoreCache, memory: MemoryGuard, draws: int
    ) -> None:
        super().__init__(datastore, live, cache, memory)
        self._draws = draws

    def known(self, model: str, study: str) -> SparseSignals | None:
        content = self.content(study)
        return self.cache.signals(model, content, self._draws) if content else None

    def made(self, study: str) -> tuple[SparseSignals, str]:
        image, model = self.image(study), self.live.identity()
        content = self.cache.checksums.of(image)
        if (fetched := self.cache.signals(model, content, self._draws)) is not None:
            return fetched, model
        generator = torch_generator(0, "signals", study)
        signals, model = self.live.signals(self.volume(image), self._draws, generator, go_on=stop_without_asker)
        self.need_unchanged(image, content)
        return self.cache.keep_signals(model, content, signals, self._draws), model


class DiceOfLabels(Source[np.ndarray]):
    """Dice (L,) of the live model's mask and the submitted label."""

    def known(self, model: str, study: str) -> np.ndarray | None:
        content = self.content(study)
        return self.cache.label_dice(model, content, self._label_content(study)) if content else None

    def made(self, study: str) -> tuple[np.ndarray, str]:
        image = self.image(study)
        content, label_content = self.cache.checksums.of(image), self._label_content(study)
        label, volume = self._label(study), self.volume(image)
        # Before the model works: a label that cannot be used is found at once.
        mask = read_mask(label, volume.grid, self.live.predictor().labels)
        prediction, predictor, model = self.live.predict(volume, go_on=stop_without_asker)
        self.need_unchanged(image, content)
        if self._label_content(study) != label_content:
            raise ImageError(image, "its label changed while it was looked at")
        dice = dice_by_structure(prediction.mask, mask, predictor.labels)
        self.cache.keep_label_dice(model, content, label_content, dice)
        return dice, model

    def _label(self, study: str) -> Path:
        return Path(self.datastore.get_label_uri(study, FINAL))

    def _label_content(self, study: str) -> str:
        """Changes with the label; in a PACS the image, on whose grid it is needed, is not fetched to know."""
        if isinstance(self.datastore, PACSStudies):
            return hashlib.sha256(self.datastore.label_state(study).encode()).hexdigest()
        return self.cache.checksums.of(self._label(study))


def stop_without_asker() -> None:
    """End the work on a study as soon as nobody waits for it: a large one may take minutes."""
    stop_if_abandoned()
    stop_without_server()


def image_file(datastore: Datastore, study: str, cache: ScoreCache) -> Path:
    """File of an image, fetched when it is in a PACS. Raises `UnknownError`.

    What is known of a series is found again by its checksum when its file had to make room for others.
    """
    # Before it is fetched: slices that come meanwhile make another state.
    state = datastore.image_state(study) if isinstance(datastore, PACSStudies) else None
    uri = datastore.get_image_uri(study)
    if not uri:
        raise UnknownError("image", study, [])
    if state:
        with contextlib.suppress(OSError):  # whoever reads the image says it better
            cache.checksums.keep_series(state, Path(uri))
    return Path(uri)


def forget_gone_images(datastore: Datastore, cache: ScoreCache) -> None:
    """Drop the checksums of images that are in no folder and no PACS any more."""
    is_pacs = isinstance(datastore, PACSStudies)
    cache.checksums.forget_gone({datastore.image_state(one) for one in datastore.list_images()} if is_pacs else ())
