"""MONAI Label's application, which writes down all its routes once it is ready: `--uvicorn_app listing_app:app`."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute
from monailabel.app import app as application
from monailabel.endpoints.user.auth import RBAC
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def noting(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            found = [entry for route in application.router.routes for entry in listed(route)]
            Path(os.environ["LISTED_ROUTES"]).write_text(json.dumps(found), encoding="utf-8")
        await send(message)

    await application(scope, receive, noting if scope["type"] == "lifespan" else send)


def listed(route: Any) -> Iterator[dict[str, Any]]:
    """Methods, path and summary of a route, with the role that it asks for itself, the names of its query and of its
    form, and the module of its function and whether that runs in the event loop. Raises `AssertionError` for another
    kind."""
    if hasattr(route, "original_router"):  # FastAPI 0.165 includes a router as one route
        for inner in route.original_router.routes:
            yield from listed(inner)
        return
    assert isinstance(route, (Mount, Route)), f"{route}: what kind of route is this?"
    own_role = next(iter(roles(route.dependant.dependencies)), None) if isinstance(route, APIRoute) else None
    if isinstance(route, Mount):
        function = {"module": type(route.app).__module__, "in_event_loop": True}
        shown = {"methods": ["GET", "HEAD"], "role": None, "summary": route.name, "names": []}
        yield {"path": f"{route.path}/{{path:path}}", **shown, **function}
    else:
        described = getattr(route, "summary", None) or (route.endpoint.__doc__ or "").partition("\n")[0]
        summary = described or route.name.replace("_", " ").capitalize()
        function = {
            "module": route.endpoint.__module__,
            "in_event_loop": inspect.iscoroutinefunction(route.endpoint),
        }
        names = names_of(route.dependant) if isinstance(route, APIRoute) else []
        shown = {"methods": sorted(route.methods or ()), "role": own_role, "summary": summary, "names": names}
        yield {"path": route.path, **shown, **function}


def names_of(dependant: Any) -> list[str]:
    return sorted(field.alias for field in (*dependant.query_params, *dependant.body_params))


def roles(dependencies: Iterable[Any]) -> Iterator[str]:
    yield from (found.call.roles for found in dependencies if isinstance(found.call, RBAC))
