"""A training that outlived its server: the next server shows it among its tasks and can stop it.

monailabel 0.8.5 knows the children that it started itself, and a trainer goes on when its server ends. Which one runs
in the folder of the trainings, its status file says.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
from monailabel.utils.async_tasks.utils import processes

from vqseg.training.status import read_status, training_process

_SECONDS_TO_END = 10


class OrphanedTraining:
    """Args: `run` the folder of the trainings; `model` the name of their trainer."""

    def __init__(self, run: Path, model: str) -> None:
        self._run, self._model = run, model

    def task(self) -> dict[str, Any] | None:
        """The orphan as MONAI Label describes its own tasks, or none."""
        process = self._process()
        return self._described("RUNNING") if process else None

    def stop(self) -> dict[str, Any] | None:
        """End it, as MONAI Label ends its own children; what it was, or none. The next training goes on from there."""
        process = self._process()
        if process is None:
            return None
        described = self._described("STOPPED")
        family = [*process.children(recursive=True), process]
        for one in family:
            one.kill()
        psutil.wait_procs(family, _SECONDS_TO_END)
        return described

    def _process(self) -> psutil.Process | None:
        found = None if processes("train") else training_process(self._run)
        # Whatever the status file says: it must not be the server that is stopped.
        return found if found and found.pid != os.getpid() else None

    def _described(self, status: str) -> dict[str, Any]:
        training = read_status(self._run) or {}
        started = time.localtime(training.get("started", 0))
        return {
            "id": f"process-{training.get('pid')}",
            "status": status,
            "request": {"model": self._model},
            "start_ts": time.strftime("%Y-%m-%d %H:%M:%S", started),
            "details": ["started by a server that has ended since"],
        }
