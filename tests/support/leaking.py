"""MONAI Label's server, but each request costs as many bytes for ever as LEAK_BYTES says: it must be found out.

Takes the arguments of `python -m monailabel.main`.
"""

from __future__ import annotations

import os
import runpy
from typing import Any

import uvicorn

_LEAKED: list[bytes] = []


class _Leaking:
    def __init__(self, app: Any, size: int) -> None:
        self._app, self._size = app, size

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            _LEAKED.append(os.urandom(self._size))
        await self._app(scope, receive, send)


_run = uvicorn.run


def _run_leaking(app: Any, **options: Any) -> None:
    from uvicorn.importer import import_from_string

    loaded = import_from_string(app) if isinstance(app, str) else app
    _run(_Leaking(loaded, int(os.environ["LEAK_BYTES"])), **options)


if __name__ == "__main__":
    uvicorn.run = _run_leaking
    runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)
