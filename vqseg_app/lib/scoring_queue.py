"""At most one scoring at a time, waiting or running, and a new one whenever there is something new to score.

monailabel 0.8.5 queues one for every request, without bound, and none when a training publishes or a study comes: that
happens in other processes, so this one looks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from monailabel.utils.async_tasks.utils import run_background_task, tasks

logger = logging.getLogger(__name__)

_METHOD = "scoring"
_SECONDS_BETWEEN_LOOKS = 2.0
_lock = threading.Lock()


def queue_scoring(
    name: str, strategy: str | None = None, ended: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """The scoring that waits or runs, else a new one, of what `strategy` needs or the default one.

    `ended` is called with the task, in a thread of this process, when a new one has ended in any way.
    """
    with _lock:
        for task in tasks(_METHOD):
            if task["status"] in ("SUBMITTED", "RUNNING"):
                return task
        request = {"method": name} if strategy is None else {"method": name, "strategy": strategy}
        return run_background_task(request, _METHOD, ended)


def score_every_change(state: Callable[[], Hashable | None], queue: Callable[[], dict[str, Any]]) -> None:
    """Queue a scoring of each `state`, which is None while there is nothing to score; never ends."""
    scored: Hashable | None = None
    while True:
        try:
            now = state()
            if now is not None and now != scored:
                known = {task["id"] for task in tasks(_METHOD)}
                # One that runs may be about to end, without having seen this state.
                if queue()["id"] not in known:
                    scored = now
        except Exception as error:  # whatever it is, the next state must be scored
            logger.warning("scoring: %s", error)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
