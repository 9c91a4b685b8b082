"""What can be known of one study: its signals, or how far its label is from the live model's mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from monailabel.interfaces.datastore import Datastore

from vqseg.active.sparse_signals import SparseSignals
from vqseg.data.reading import read_image, read_mask
from vqseg.errors import ImageError
from vqseg.metrics import dice_by_structure
from vqseg.randomness import torch_generator

from .errors_over_rest import UnknownError
from .labels import FINAL
from .live_model import LiveModel
from .pacs_datastore import PACSStudies
from .score_cache import ScoreCache
from .work_queue import stop_if_abandoned

T = TypeVar("T")


class Source(ABC, Generic[T]):
    """Knows or works out one thing of a study."""

    def __init__(self, datastore: Datastore, live: LiveModel, cache: ScoreCache) -> None:
        self.datastore, self.live, self.cache = datastore, live, cache

    @abstractmethod
    def known(self, model: str, study: str) -> T | None:
        """What is in the cache; none when it is not, or when an image would have to be fetched for it."""

    @abstractmethod
    def made(self, study: str) -> tuple[T, str]:
        """What the live model says, kept in the cache, and the identity of this model."""

    def image(self, study: str) -> Path:
        """File of an image, fetched when it is in a PACS. Raises `UnknownError`."""
        uri = self.datastore.get_image_uri(study)
        if not uri:
            raise UnknownError("image", study, [])
        return Path(uri)

    def need_unchanged(self, before: tuple[str, ...], *files: Path) -> None:
        """Raises `ImageError` when a file is not what it was: what is known of it must not be kept for the new one."""
        if self.cache.content(*files) != before:
            raise ImageError(files[0], "it, or its label, changed while it was looked at")

    def image_at_hand(self, study: str) -> Path | None:
        """File of an image, none when it would have to be fetched."""
        if isinstance(self.datastore, PACSStudies):
            return self.datastore.image_on_disk(study)
        return self.image(study)


class SignalsOfImages(Source[SparseSignals]):
    """Args: QPM `draws`, 0 for none."""

    def __init__(self, datastore: Datastore, live: LiveModel, cache: ScoreCache, draws: int) -> None:
        super().__init__(datastore, live, cache)
        self._draws = draws

    def known(self, model: str, study: str) -> SparseSignals | None:
        image = self.image_at_hand(study)
        return self.cache.signals(model, image, self._draws, at_hand=True) if image else None

    def made(self, study: str) -> tuple[SparseSignals, str]:
        image, model = self.image(study), self.live.identity()
        if (fetched := self.cache.signals(model, image, self._draws)) is not None:
            return fetched, model
        before = self.cache.content(image)
        generator = torch_generator(0, "signals", study)
        signals, model = self.live.signals(read_image(image), self._draws, generator, go_on=stop_if_abandoned)
        self.need_unchanged(before, image)
        return self.cache.keep_signals(model, image, signals, self._draws), model


class DiceOfLabels(Source[np.ndarray]):
    """Dice (L,) of the live model's mask and the submitted label."""

    def known(self, model: str, study: str) -> np.ndarray | None:
        image = self.image_at_hand(study)
        return self.cache.label_dice(model, image, self._label(study)) if image else None

    def made(self, study: str) -> tuple[np.ndarray, str]:
        image, label = self.image(study), self._label(study)
        before, volume = self.cache.content(image, label), read_image(image)
        # Before the model works: a label that cannot be used is found at once.
        mask = read_mask(label, volume.grid, self.live.predictor().labels)
        prediction, predictor, model = self.live.predict(volume, go_on=stop_if_abandoned)
        self.need_unchanged(before, image, label)
        dice = dice_by_structure(prediction.mask, mask, predictor.labels)
        self.cache.keep_label_dice(model, image, label, dice)
        return dice, model

    def _label(self, study: str) -> Path:
        return Path(self.datastore.get_label_uri(study, FINAL))
