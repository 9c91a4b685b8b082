"""What computes waits in line: no number of clients takes more than one volume's memory or all of the server's threads.

Reasons (monailabel 0.8.5): every request for a mask or a study starts computing at once, and goes on when its client
has left. In a thread of starlette's pool, which has 40, so many waiting ones would keep `/info/` from being answered.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

logger = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_AFTER = {"Retry-After": "10"}  # seconds
# nginx's number for it; nobody reads the answer, but the log does.
_CLIENT_GONE = 499


class AbandonedError(Exception):
    """Ends work that nobody waits for any more; no client ever sees it."""


class _Job:
    """One request's work, which another thread may tell that it is not wanted any more."""

    def __init__(self) -> None:
        self.has_begun = False
        self.is_unwanted = threading.Event()

    def run(self, work: Callable[[], T]) -> T:
        self.has_begun = True
        token = _running.set(self)
        try:
            return work()
        finally:
            _running.reset(token)


_running: ContextVar[_Job | None] = ContextVar("running", default=None)


def stop_if_abandoned() -> None:
    """Raises `AbandonedError` in work of the queue whose client has left or whose time is over; elsewhere nothing."""
    job = _running.get()
    if job is not None and job.is_unwanted.is_set():
        raise AbandonedError


class WorkQueue:
    """First come, first served; one at a time unless told otherwise, for there is one model on one device.

    Args: `kind` of work, for messages; `waiting` requests at most, beside those that are `running`; `seconds` from a
    request's arrival to its end.
    """

    def __init__(self, kind: str, waiting: int, seconds: float, running: int = 1) -> None:
        self._kind, self._waiting, self._seconds, self._running = kind, waiting, seconds, running
        self._held, self._counting = 0, threading.Lock()
        self._threads = ThreadPoolExecutor(running, thread_name_prefix=kind)

    def length(self) -> int:
        """How many wait for their turn."""
        return max(0, self._held - self._running)

    async def run(
        self,
        request: Request,
        work: Callable[[], T],
        discard: Callable[[], None] = lambda: None,
        *,
        spent: float = 0.0,
    ) -> T:
        """What `work` returns, once it is its turn. The body of `request` must have been read; `spent` seconds of its
        time are over already.

        When nobody waits any more, `stop_if_abandoned` ends the work, and whatever it left is removed by `discard`,
        once, in any thread. Raises `HTTPException`: 503 when the line is full or the time ended in it, 504 when it
        ended in the work.
        """
        if not self._take_place():
            words = f"{self._waiting} {self._kind}s are waiting already: try again later"
            raise HTTPException(503, words, RETRY_AFTER)
        job = _Job()
        ended: Future[T] = self._threads.submit(job.run, work)
        ended.add_done_callback(lambda _: self._give_place_back())
        result, leaving = asyncio.wrap_future(ended), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait(
                {result, leaving}, timeout=max(0.0, self._seconds - spent), return_when=asyncio.FIRST_COMPLETED
            )
            if result.done():
                return result.result()
            if leaving.done():
                leaving.result()  # or what was wrong with the rest of the body
                raise HTTPException(_CLIENT_GONE, "the client has left")
            raise self._too_late(job)
        finally:
            leaving.cancel()
            if not result.done():
                job.is_unwanted.set()
                result.cancel()  # takes it out of the line; what runs goes on to its next look at `job`
                ended.add_done_callback(lambda _: discard())

    def _take_place(self) -> bool:
        with self._counting:
            is_free = self._held < self._running + self._waiting
            self._held += is_free
            return is_free

    def _give_place_back(self) -> None:
        with self._counting:
            self._held -= 1

    def _too_late(self, job: _Job) -> HTTPException:
        if job.has_begun:
            words = f"the {self._kind} was ended after {self._seconds:g} s (--conf infer_seconds)"
            return HTTPException(504, words)
        return HTTPException(503, f"it was not its turn within {self._seconds:g} s: try again later", RETRY_AFTER)


async def _left(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
