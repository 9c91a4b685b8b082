"""What a tracker is to the training: it keeps the figures while they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Tracker"]


class Tracker(ABC):
    """Keeps the figures of one training.

    Args: `run` the training's folder; `training` its name, the same when it is continued; `done` the steps that it had
    done when it was stopped, 0 for a new one: figures of later steps that are there already must not be there twice;
    `settings` by name.
    """

    @abstractmethod
    def __init__(self, run: Path, training: str, done: int, settings: Mapping[str, str]) -> None: ...

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step, by name; they may be kept in memory until `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Write what was taken: called before each checkpoint, so that what a kill loses is trained again."""

    @abstractmethod
    def end(self, state: str) -> None:
        """Write the rest and close; `state` is done, stopped or failed."""
