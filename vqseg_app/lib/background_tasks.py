"""A task in the background whose process does not start ends as an error.

monailabel 0.8.5 starts it in a thread in which nobody hears of an exception, such as one of a machine without memory:
the task stayed SUBMITTED for ever, DELETE found no process to stop, and no other scoring was ever queued.
"""

from __future__ import annotations

import functools
import logging
from datetime import datetime
from typing import Any

from monailabel.utils.async_tasks import utils

logger = logging.getLogger(__name__)


def end_failed_tasks() -> None:
    """From now on every task of this process ends. Called again, it changes nothing."""
    run = utils._task_func
    if hasattr(run, "__wrapped__"):
        return

    @functools.wraps(run)
    def run_to_an_end(task: dict[str, Any], method: str, callback: Any = None) -> None:
        try:
            run(task, method, callback)
        except Exception as error:  # whatever it is, the task must end
            logger.exception("%s: the task has failed", method)
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return
            # Nobody reads what it prints any more, and it would wait for that.
            if process := utils.processes(method).pop(task["id"], None):
                process.kill()
            task["details"] = [f"{type(error).__name__}: {error}"]
            task["end_ts"] = datetime.today().strftime("%Y-%m-%d %H:%M:%S")
            task["status"] = "ERROR"
            if callback:
                callback(task)

    utils._task_func = run_to_an_end
