"""Until the first training publishes, studies are compared by a codebook that was learnt from images alone."""

from __future__ import annotations

import logging
from pathlib import Path

from monailabel.interfaces.datastore import Datastore

from vqseg.active.strategies import STRATEGIES
from vqseg.config import Config
from vqseg.training.self_supervised import pretrain

from .live_model import LiveModel
from .training import pool_of

logger = logging.getLogger(__name__)
# What images alone say of a study.
_KNOWN = {"usage", "code_weights", "labelled_weights", "features", "labelled_features"}


class ColdStart:
    """Args: the `live` model; `folder` of the one learnt from images; `config` of both, `device` for the latter."""

    def __init__(self, live: LiveModel, folder: Path, config: Config, device: str) -> None:
        self._live, self._folder, self._device = live, folder, device
        self._steps, self._strategy = config.active.cold_start_steps, config.active.cold_strategy
        train = config.train.model_copy(update={"steps": max(1, self._steps)})
        self._config = config.model_copy(update={"train": train})
        self._model = LiveModel(folder, device)

    def comparing(self) -> LiveModel:
        """The model by which studies are compared now."""
        return self._live if self._live.version() is not None or not self._steps else self._model

    def is_over(self) -> bool:
        """Whether studies are compared by a model that knows structures, or by none at all."""
        return self.comparing() is self._live

    def is_missing(self) -> bool:
        """Whether studies could be compared already, had the codebook been learnt."""
        return not self.is_over() and self._model.version() is None

    def strategy(self, name: str) -> str:
        """The strategy of that name, or the one that takes its place as long as no structure is known."""
        return name if self.is_over() or STRATEGIES[name].needs <= _KNOWN else self._strategy

    def learn(self, datastore: Datastore) -> None:
        """Learn the codebook from all images. Raises `DataError` when none can be read."""
        logger.info("learning a codebook from images alone, %d steps", self._steps)
        pretrain(pool_of(datastore).studies, self._folder, self._config, device=self._device)
