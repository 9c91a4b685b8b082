"""Around every request: how long it took goes to the metrics, who did what to the audit log."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .audit import AuditLog
from .metrics import Metrics

_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
# One name for all paths without a route: whoever tries paths must not make the metrics grow.
_NO_ROUTE = "none"
_CLIENT_GONE = 499
# Answered as long as somebody looks on: their seconds say nothing of the server.
_STREAMS = ("/vqseg/events",)


class Watch:
    """ASGI middleware; a body passes through it piece by piece."""

    def __init__(self, app: ASGIApp, metrics: Metrics, audit: AuditLog) -> None:
        self._app, self._metrics, self._audit = app, metrics, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), None
        method = scope["method"] if scope["method"] in _METHODS else "other"

        def tell(code: int) -> None:
            nonlocal status
            status = code
            self._audit.note({**scope, "method": method}, route_of(scope), code)

        async def send_on(message: Message) -> None:
            # Nobody gets an answer of which there is no line.
            if message["type"] == "http.response.start":
                tell(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            if status is None:
                tell(500)
            raise
        finally:
            if status is None:
                tell(_CLIENT_GONE)
            if route_of(scope) not in _STREAMS:
                self._metrics.request(method, route_of(scope), status, time.perf_counter() - started)


def watch_requests(application: FastAPI, metrics: Metrics, audit: AuditLog) -> None:
    """Watch all requests of the running application, those among them that its other middleware refuses."""
    application.user_middleware.insert(0, Middleware(Watch, metrics=metrics, audit=audit))
    # It was built before the application started (starlette 1.10).
    application.middleware_stack = application.build_middleware_stack()


def route_of(scope: Any) -> str:
    """The template of the route that answered, without the ids in it."""
    return str(getattr(scope.get("route"), "path", None) or _NO_ROUTE)
