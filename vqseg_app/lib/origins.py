"""From which pages of other servers a browser may call this one: those of the option `cors_origins`, by default none.

Reasons (monailabel 0.8.5): it lets every page of the web read every answer, with credentials, and its own setting for
that, MONAI_LABEL_CORS_ORIGINS, is of no use: with it `start_server` ends in a TypeError (pydantic 2.14), and each
address in it gets a slash at its end, which no browser sends.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.types import Scope

from vqseg.errors import ConfigError

_READING = ("GET", "HEAD", "OPTIONS")


def read_origins(text: str) -> frozenset[str]:
    """Origins out of `a,b`, as browsers spell them. Raises `ConfigError`."""
    found = frozenset(part.strip() for part in text.split(",")) if text else frozenset()
    for origin in found:
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", origin):
            raise ConfigError(f"cors_origins={origin!r}: expected addresses such as https://viewer.example.org:3000")
    return found


def limit_origins(application: FastAPI, origins: Collection[str]) -> None:
    """Take MONAI Label's answer to other origins out of the application, and put one in for those that are listed.

    The caller builds the application's middleware anew.
    """
    kept = [one for one in application.user_middleware if one.cls is not CORSMiddleware]
    if origins:
        # No credentials: what a browser adds by itself is for the viewer of this server; others send their token.
        kept.insert(
            0, Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
        )
    application.user_middleware[:] = kept


def is_foreign(scope: Scope, origins: Collection[str]) -> bool:
    """Whether a page of a server that is not listed wants to change something here.

    A browser asks nobody before it sends a form, and adds what it knows of the user; only the answer is kept from the
    page.
    """
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is None or scope["method"] in _READING or origin in origins:
        return False
    return origin.partition("://")[2].lower() != headers.get("host", "").lower()
