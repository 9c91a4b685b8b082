"""What a strategy needs to know of many studies: from the cache, else worked out by the model while time is left."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from monailabel.interfaces.datastore import Datastore

from vqseg.active.review import label_dice
from vqseg.active.sparse_signals import SparseSignals
from vqseg.data.reading import read_image, read_mask
from vqseg.errors import ImageError
from vqseg.randomness import torch_generator
from vqseg.store import ModelVersion

from .errors_over_rest import UnknownError, without_folder
from .labels import FINAL
from .live_model import LiveModel, identity_of
from .pacs import PACSAwayError, PACSError
from .pacs_datastore import PACSStudies
from .score_cache import ScoreCache

logger = logging.getLogger(__name__)

T = TypeVar("T")
Told = Callable[[ModelVersion, int], None]


@dataclass
class Gathered(Generic[T]):
    """What one `version` says by study, those it did not see in time, and the unusable ones with the reason."""

    version: ModelVersion
    found: dict[str, T] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def of(self, studies: Iterable[str]) -> Gathered[T]:
        """What of this is about these studies."""
        chosen = set(studies)
        return Gathered(
            self.version,
            {study: value for study, value in self.found.items() if study in chosen},
            [study for study in self.missing if study in chosen],
            {study: why for study, why in self.left_out.items() if study in chosen},
        )


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
        return self.cache.signals(model, image, self._draws) if image else None

    def made(self, study: str) -> tuple[SparseSignals, str]:
        image, model = self.image(study), self.live.identity()
        if (fetched := self.cache.signals(model, image, self._draws)) is not None:
            return fetched, model
        signals, model = self.live.signals(read_image(image), self._draws, torch_generator(0, "signals", study))
        return self.cache.keep_signals(model, image, signals, self._draws), model


class DiceOfLabels(Source[np.ndarray]):
    """Dice (L,) of the live model's mask and the submitted label."""

    def known(self, model: str, study: str) -> np.ndarray | None:
        image = self.image_at_hand(study)
        return self.cache.label_dice(model, image, self._label(study)) if image else None

    def made(self, study: str) -> tuple[np.ndarray, str]:
        image, label = self.image(study), self._label(study)
        volume = read_image(image)
        prediction, predictor, model = self.live.predict(volume)
        dice = label_dice(prediction.mask, read_mask(label, volume.grid, predictor.labels), predictor.labels)
        self.cache.keep_label_dice(model, image, label, dice)
        return dice, model

    def _label(self, study: str) -> Path:
        return Path(self.datastore.get_label_uri(study, FINAL))


def gather(
    studies: Sequence[str], source: Source[T], live: LiveModel, seconds: float = math.inf, told: Told | None = None
) -> Gathered[T]:
    """Look at studies, and let the model work for at most `seconds`. `told` hears of the version and how many are done.

    A training may publish meanwhile, and two models cannot be compared: then all is looked at anew, by the new one.
    Raises `ModelError` when there is no model.
    """
    end = time.monotonic() + seconds
    while True:
        gathered = _by_one_version(Gathered(live.needed_version()), studies, source, end, told)
        if gathered is not None:
            return gathered


def _by_one_version(
    gathered: Gathered[T], studies: Sequence[str], source: Source[T], end: float, told: Told | None
) -> Gathered[T] | None:
    """None as soon as another version is live."""
    model = identity_of(gathered.version)
    for done, study in enumerate(studies):
        if told:
            told(gathered.version, done)
        try:
            value = source.known(model, study)
            if value is None and time.monotonic() >= end:
                gathered.missing.append(study)
                continue
            if value is None:
                value, made_by = source.made(study)
                if made_by != model:
                    return None
        except PACSAwayError:
            raise
        except ImageError as error:
            gathered.left_out[study] = without_folder(error.reason)
        except (PACSError, UnknownError) as error:
            gathered.left_out[study] = without_folder(str(error))
        except OSError as error:
            gathered.left_out[study] = f"cannot be read ({error.strerror})"
        else:
            gathered.found[study] = value
    for study, reason in gathered.left_out.items():
        logger.warning("left out: %s (%s)", study, reason)
    return gathered
