"""The folder of a training: one process at a time trains in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from vqseg.errors import TrainingError
from vqseg.files import remove_leftovers
from vqseg.report.listing import REPORTS
from vqseg.training.status import StatusFile, read_status

__all__ = ["begin_in"]

# In which a killed process may have left something half-written.
_FOLDERS = ("checkpoints", "models", "cache", "last_training", REPORTS)


@contextlib.contextmanager
def begin_in(run: Path, **fields: Any) -> Iterator[StatusFile]:
    """Hold the folder's lock, which the system releases when the process ends, however it ends; gives the status of the
    training, with these `fields`.

    Raises `TrainingError` when another process trains there, and when nothing can be written there.
    """
    lock = filelock.FileLock(run / "lock")
    try:
        try:
            run.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            for folder in (run, *(run / name for name in _FOLDERS)):
                remove_leftovers(folder)
            status = StatusFile(run, **fields)
        except filelock.Timeout:
            pid = (read_status(run) or {}).get("pid", "unknown")
            raise TrainingError(
                f"{run}: another training is running there (process {pid}); wait for it or stop it"
            ) from None
        except OSError as error:
            words = (
                f"{run}: a training cannot write there ({error.strerror or error}); mend that, or choose another folder"
            )
            raise TrainingError(words) from None
        yield status
    finally:
        lock.release()
