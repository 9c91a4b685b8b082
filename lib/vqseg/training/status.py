"""What a training is doing, in a file that other processes read: `<run>/status.json`, and `<run>/events.jsonl`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil

from vqseg.files import read_json, write_json

__all__ = ["EVENTS_FILE", "StatusFile", "add_event", "read_status", "training_process"]

EVENTS_FILE = "events.jsonl"
_NAME = "status.json"
# Seconds. The time of the start of the machine, which is told in whole ones, may be another each time it is asked for.
_TOLERANCE = 2.0


class StatusFile:
    """The status of the training that runs in this process."""

    def __init__(self, run: Path, **fields: Any) -> None:
        self.run = run
        self._began = time.monotonic()
        process = psutil.Process()
        self.fields: dict[str, Any] = {
            "state": "running",
            "pid": process.pid,
            "process_started": _uptime_at_start(process),
            "started": time.time(),
            "message": "",
            **fields,
        }
        self.write()

    def write(self, **fields: Any) -> None:
        """Change some fields and write the file."""
        self.fields.update(fields)
        self.fields.update(updated=time.time(), elapsed_seconds=round(time.monotonic() - self._began, 1))
        write_json(self.run / _NAME, self.fields)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to the run's events."""
        add_event(self.run, kind, **fields)


def add_event(run: Path, kind: str, **fields: Any) -> None:
    """Append one line to the events of a run."""
    line = json.dumps({"event": kind, "time": round(time.time(), 3), **fields})
    with (run / EVENTS_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_status(run: Path) -> dict[str, Any] | None:
    """The status of the training in `run`, or none; "running" becomes "interrupted" when its process is gone."""
    status = read_json(run / _NAME)
    if isinstance(status, dict) and status.get("state") == "running" and not _process_of(status):
        status = {**status, "state": "interrupted"}
    return status if isinstance(status, dict) else None


def training_process(run: Path) -> psutil.Process | None:
    """The process of the training that runs in `run`, or none."""
    status = read_status(run) or {}
    return _process_of(status) if status.get("state") == "running" else None


def _process_of(status: dict[str, Any]) -> psutil.Process | None:
    """The very process that wrote the status, if it runs: its id may be another's by now, or a zombie's."""
    try:
        process = psutil.Process(int(status["pid"]))
        same = abs(_uptime_at_start(process) - status["process_started"]) < _TOLERANCE
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def _uptime_at_start(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of a process: the same also after the clock was set."""
    return process.create_time() - psutil.boot_time()
