"""Where the figures of a training go while it runs: TensorBoard, MLflow or both, through one small interface.

Nothing goes over the network, and a tracker that fails never ends a training.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from vqseg.errors import ConfigError
from vqseg.training.mlflow_tracker import MLflow
from vqseg.training.tensorboard_tracker import TensorBoard
from vqseg.training.tracker import Tracker

__all__ = ["TRACKERS", "Trackers", "check_trackers"]

TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def check_trackers(names: Sequence[str]) -> None:
    """Raises `ConfigError` when MLflow is asked for and not installed."""
    if "mlflow" in names and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "tracking.to: mlflow is not installed; install it (pip install 'mlflow>=3.15.2,<4') or choose tensorboard"
        )


class Trackers:
    """The trackers of one training. One that fails is reported once, as an event `tracker_failed`, and left out.

    Args: `names` of `TRACKERS`; `report` takes the kind of an event and its fields. As a context it ends them.
    """

    def __init__(self, names: Sequence[str], report: Callable[..., None]) -> None:
        self._names, self._report = names, report
        self._running: dict[str, Tracker] = {}

    def begin(self, run: Path, training: str, done: int, settings: Mapping[str, str]) -> None:
        """Open them; see `Tracker`."""
        for name in self._names:
            try:
                self._running[name] = TRACKERS[name](run, training, done, settings)
            except Exception as error:
                self._say(name, error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step by name."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def flush(self) -> None:
        """Write what was taken."""
        self._each(lambda tracker: tracker.flush())

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = "done" if kind is None else "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self._each(lambda tracker: tracker.end(state))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._running[name]
                self._say(name, error)

    def _say(self, name: str, error: Exception) -> None:
        # On a full disk this cannot be written either.
        with contextlib.suppress(OSError):
            words = str(error).strip().splitlines() or [type(error).__name__]
            self._report("tracker_failed", tracker=name, reason=f"{words[0]}; the training goes on without it")
