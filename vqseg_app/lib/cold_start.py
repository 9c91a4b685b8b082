"""Until the first training publishes, studies are compared by a codebook that was learnt from images alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from vqseg.active.pool import KNOWN_FROM_IMAGES
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.config import Config
from vqseg.errors import ConfigError
from vqseg.training.self_supervised import pretrain

from .live_model import LiveModel
from .training import pool_of

logger = logging.getLogger(__name__)


class ColdStart:
    """Args: the `live` model; `folder` of the one learnt from images; `config` of both, `device` for the latter.

    Of the two only one stays in memory: the server asks every few seconds which it is (`score_every_change`).
    """

    def __init__(self, live: LiveModel, folder: Path, config: Config, device: str) -> None:
        self._live, self._folder, self._device = live, folder, device
        self._settings, self._steps = config.active, config.active.cold_start_steps
        train = config.train.model_copy(update={"steps": max(1, self._steps)})
        self._config = config.model_copy(update={"train": train})
        self._model = LiveModel(folder, device)

    def comparing(self) -> LiveModel:
        """The model by which studies are compared now; the one learnt from images is unloaded once another is live."""
        if self._live.version() is None and self._steps:
            return self._model
        self._model.unload()
        return self._live

    def is_missing(self) -> bool:
        """Whether studies could be compared already, had the codebook been learnt."""
        return self.comparing() is self._model and self._model.version() is None

    def strategy(self, name: str, model: LiveModel) -> str:
        """The strategy of that name, or the one that takes its place where `model` knows no structure."""
        known = model is self._live or make_strategy(name, self._settings).needs <= KNOWN_FROM_IMAGES
        return name if known else self._settings.cold_strategy

    def learn(self, datastore: Datastore, on_step: Callable[[], None]) -> None:
        """Learn the codebook from all images, unless a training publishes meanwhile; `on_step` may end it.

        Raises `DataError` when no image can be read.
        """

        def look_up(status: dict[str, Any]) -> None:
            on_step()
            if self._live.version() is not None:
                raise _SupersededError

        logger.info("learning a codebook from images alone, %d steps", self._steps)
        studies = pool_of(datastore).studies
        try:
            pretrain(studies, self._folder, self._config, device=self._device, on_progress=look_up)
        except _SupersededError:
            logger.info("a trained model is there; no codebook is learnt from images alone")


def cold_strategy(name: str) -> str:
    """The name, where the strategy needs to know no structure. Raises `ConfigError` with those that do not."""
    fitting = [known for known, strategy in STRATEGIES.items() if strategy.needs <= KNOWN_FROM_IMAGES]
    if name not in fitting:
        raise ConfigError(
            f"active.cold_strategy: {name!r} is none that needs no model; these are: {', '.join(fitting)}"
        )
    return name


class _SupersededError(Exception):
    pass
