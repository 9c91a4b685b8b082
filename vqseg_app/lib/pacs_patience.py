"""How long a PACS may take for an answer in all. One that sends a byte now and then is never silent, and would keep
whoever waits for it, and the one place where masks are made, for ever.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection

from .work_queue import AbandonedError, stop_if_abandoned

_LOOK_SECONDS = 0.5


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """The block asks a PACS, through sessions that have an `ImpatientAdapter`.

    After so many `seconds` its connections are cut, which raises `requests.Timeout`; when nobody waits for its work any
    more, too, which raises `AbandonedError`.
    """
    exchange = _Exchange()
    # What the block waits for cannot be looked at from within it.
    watcher = threading.Thread(target=copy_context().run, args=(exchange.watch, seconds), name="pacs", daemon=True)
    token = _current.set(exchange)
    watcher.start()
    try:
        yield
    except Exception:
        if exchange.reason is None:
            raise
    finally:
        exchange.over.set()
        _current.reset(token)
    # An answer that was cut off may look whole.
    if exchange.reason is not None:
        raise exchange.reason


class ImpatientAdapter(requests.adapters.HTTPAdapter):
    """Lets no request wait for ever: a PACS may be silent for `silence`, (connect, read) seconds."""

    def __init__(self, silence: tuple[float, float]) -> None:
        super().__init__()
        self._silence = silence

    def send(self, request: Any, timeout: Any = None, **options: Any) -> requests.Response:
        return super().send(request, timeout=timeout or self._silence, **options)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = _SecureConnection if pool.scheme == "https" else _Connection
        return pool


class _Exchange:
    """What a block asks of a PACS; `reason` says why it was ended."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.reason: Exception | None = None
        self._sockets: list[socket.socket] = []

    def note(self, used: socket.socket) -> None:
        if self.reason is not None:
            raise self.reason
        self._sockets.append(used)

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.over.wait(_LOOK_SECONDS):
            try:
                stop_if_abandoned()
                if time.monotonic() > end:
                    raise requests.Timeout
            except (AbandonedError, requests.Timeout) as reason:
                self.reason = reason
                for used in list(self._sockets):
                    # Closing it would not wake who reads from it.
                    with contextlib.suppress(OSError):
                        used.shutdown(socket.SHUT_RDWR)
                return


_current: ContextVar[_Exchange | None] = ContextVar("exchange", default=None)


class _Noted:
    """A connection whose socket the exchange knows, be it new or one that is used again."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._note()

    def request(self, *args: Any, **options: Any) -> None:
        self._note()
        super().request(*args, **options)  # type: ignore[misc]

    def _note(self) -> None:
        exchange = _current.get()
        if exchange is not None and self.sock is not None:
            exchange.note(self.sock)


class _Connection(_Noted, HTTPConnection):
    pass


class _SecureConnection(_Noted, HTTPSConnection):
    pass
