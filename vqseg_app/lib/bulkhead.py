"""Bulkheads: one kind of request cannot take all of the server's threads, however long a disk or a PACS keeps it.

Reason (starlette 1.10): every route declared with `def` runs in one pool of 40 threads, `/info/` too, and any number of
requests may wait for one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Depends
from starlette.exceptions import HTTPException

from .work_queue import RETRY_AFTER

_SECONDS = 30.0


class Bulkhead:
    """A dependency of routes, until their answer is sent. What waits here waits in no thread.

    Args: `kind` of request, for messages; how many are `running` at a time, and how many more may be `waiting`, none
    for longer than `seconds`.
    """

    def __init__(self, kind: str, running: int, waiting: int, seconds: float = _SECONDS) -> None:
        self._kind, self._seconds, self._most = kind, seconds, running + waiting
        self._free = asyncio.Semaphore(running)
        self._held = 0  # it is counted in the event loop alone

    async def __call__(self) -> AsyncIterator[None]:
        """Raises `HTTPException` 503 when too many are here already, or when it was not its turn in time."""
        if self._held >= self._most:
            words = f"{self._held} {self._kind} requests are being answered already: try again later"
            raise HTTPException(503, words, RETRY_AFTER)
        self._held += 1
        try:
            try:
                await asyncio.wait_for(self._free.acquire(), self._seconds)
            except (TimeoutError, asyncio.TimeoutError):
                words = f"other {self._kind} requests have taken {self._seconds:g} s: try again later"
                raise HTTPException(503, words, RETRY_AFTER) from None
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._held -= 1


# Together they leave a dozen threads to all else. A browser asks for six files at a time.
AsksForStudies = Depends(Bulkhead("datastore", running=12, waiting=48))
AsksForPACS = Depends(Bulkhead("PACS", running=12, waiting=48))
AsksForSession = Depends(Bulkhead("session", running=4, waiting=16))
