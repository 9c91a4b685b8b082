"""How far the scoring is, in a file that the server reads: `<folder>/status.json`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqseg.store import ModelVersion
from vqseg.training.status import StatusFile, read_status

logger = logging.getLogger(__name__)

# Seconds between two looks that anybody takes at it.
_PAUSE = 1.0
_SHOWN = ("state", "model_version", "done", "total", "left_out", "unusable_labels", "message")


def read_progress(folder: Path) -> dict[str, Any]:
    """`state` none, running, interrupted, failed or done; `done` of `total` studies by `model_version`; when done,
    the reason by study why it was `left_out`, or its label by the review (`unusable_labels`)."""
    status = read_status(folder) or {"state": "none"}
    return {key: status[key] for key in _SHOWN if key in status}


class ScoringProgress:
    """Written by the process that scores. A full disk must not stop it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._status: StatusFile | None = None
        self._told = -_PAUSE

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the end of the block the scoring runs."""
        self._write()
        try:
            yield
        except Exception as error:
            self._write(state="failed", message=str(error))
            raise
        self._write(state="done")

    def tell(self, version: ModelVersion, done: int, total: int) -> None:
        """Say how many studies a version has scored; not more often than somebody looks."""
        if time.monotonic() - self._told >= _PAUSE:
            self._told = time.monotonic()
            self._write(model_version=version.name, done=done, total=total)

    def finish(
        self, version: ModelVersion, total: int, left_out: Mapping[str, str], unusable_labels: Mapping[str, str]
    ) -> None:
        """Say what could not be scored, out of all that was looked at."""
        why = {"left_out": dict(left_out), "unusable_labels": dict(unusable_labels)}
        self._write(model_version=version.name, done=total, total=total, **why)

    def _write(self, **fields: Any) -> None:
        try:
            if self._status is None:
                self._status = StatusFile(self._folder, **fields)
            else:
                self._status.write(**fields)
        except OSError as error:
            logger.warning("the progress of the scoring cannot be written (%s)", error)
