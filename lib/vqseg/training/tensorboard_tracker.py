"""The figures of a training as event files of TensorBoard: `<run>/tensorboard/<training>/`.

A training that is continued adds a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vqseg.training.tracker import Tracker

__all__ = ["TensorBoard"]


class TensorBoard(Tracker):
    """Event files, which `tensorboard --logdir <run>/tensorboard` shows."""

    def __init__(self, run: Path, training: str, done: int, settings: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard passes over older points from this step on.
        self._writer = SummaryWriter(run / "tensorboard" / training, purge_step=done + 1 if done else None)
        if not done:
            rows = "\n".join(f"    {name}: {value}" for name, value in settings.items())
            self._writer.add_text("settings", rows)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def end(self, state: str) -> None:
        self._writer.add_text("state", state)
        self._writer.close()
