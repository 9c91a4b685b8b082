"""`GET /vqseg/events`: what changes, as server-sent events, so that no page need ask again and again.

`training` holds what `/vqseg/training` says of the training that runs. `changed` holds a number for each of
`trainings`, `points`, `models`, `images`, `labels` and `scores`; whoever shows these asks for them again when its
number is another.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import zlib
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from anyio import Lock, to_thread
from fastapi import APIRouter, Depends, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent
from monailabel.interfaces.utils.app import app_instance

from vqseg.errors import VQSegError

from .request_rules import AsUser
from .training_routes import events_state, points_state, training_now
from .work_queue import RETRY_AFTER

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/vqseg", tags=["App"])
_SECONDS = 1.0
_MOST_STREAMS = 64
_RETRY_MILLISECONDS = 2000


class Changes:
    """What all streams of a server tell, looked up once for all of them."""

    def __init__(self) -> None:
        self.streams = 0
        self._turn = Lock()
        self._looked = -_SECONDS
        self._last: dict[str, Any] = {}

    async def now(self, app: Any) -> dict[str, Any]:
        """By name of an event, its data; at most half a second old."""
        async with self._turn:
            if time.monotonic() - self._looked >= _SECONDS / 2:
                self._last = await to_thread.run_sync(_look, app)
                self._looked = time.monotonic()
        return self._last


def _a_place() -> Iterator[Changes]:
    changes: Changes = app_instance().changes
    if changes.streams >= _MOST_STREAMS:
        raise HTTPException(503, f"{_MOST_STREAMS} pages follow this server already", RETRY_AFTER)
    changes.streams += 1
    try:
        yield changes
    finally:
        changes.streams -= 1


@router.get("/events", summary="What changes, as server-sent events", response_class=EventSourceResponse)
async def follow(user: AsUser, changes: Annotated[Changes, Depends(_a_place)]) -> AsyncIterable[ServerSentEvent]:
    told: dict[str, Any] = {}
    while not _server_stops():
        for name, data in (await changes.now(app_instance())).items():
            if told.get(name) != data:
                told[name] = data
                yield ServerSentEvent(event=name, data=data, retry=_RETRY_MILLISECONDS)
        await asyncio.sleep(_SECONDS)


def _look(app: Any) -> dict[str, Any]:
    live = app.live.version()
    states = {
        "trainings": events_state(app.run),
        "points": points_state(app.run),
        "models": (live.name if live else None, _changed(app.live.store.folder)),
        "images": _told_by(app, "images_state"),
        "labels": _told_by(app, "labels_state"),
        "scores": _changed(app.scoring_folder / "status.json"),
    }
    return {
        "training": training_now(app),
        "changed": {name: zlib.crc32(repr(state).encode()) for name, state in states.items()},
    }


def _told_by(app: Any, state: str) -> Any:
    try:
        return getattr(app.datastore(), state)()
    except (VQSegError, OSError) as error:
        logger.debug("the studies cannot be looked at (%s): %s", state, error)
        return None


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _server_stops() -> bool:
    """uvicorn (0.54) waits at its end for whoever is still being answered, which here would be for ever; its server
    is known by the handler that it set for the signal that ends it."""
    return bool(getattr(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), "should_exit", False))
