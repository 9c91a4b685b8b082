"""At most one scoring at a time, waiting or running; monailabel 0.8.5 queues one for every request, without bound."""

from __future__ import annotations

import threading
from typing import Any

from monailabel.utils.async_tasks.utils import run_background_task, tasks

_METHOD = "scoring"
_lock = threading.Lock()


def queue_scoring(name: str) -> dict[str, Any]:
    """The scoring that waits or runs, else a new one."""
    with _lock:
        for task in tasks(_METHOD):
            if task["status"] in ("SUBMITTED", "RUNNING"):
                return task
        return run_background_task({"method": name}, _METHOD)
