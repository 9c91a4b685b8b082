"""In front of everything: who sends the request, may they, and is the route open.

It decides by `access.RULES` alone, before anything of the request but its head was read.
"""

from __future__ import annotations

import ipaddress
import logging
import re

from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import DEFAULT_USER, get_current_user
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vqseg.errors import VQSegError

from . import login
from .access import ANYONE, CLOSABLE, Rule, closed_by, rule_for
from .accounts import Accounts, current_user, role_of
from .options import Options
from .origins import is_foreign, limit_origins

logger = logging.getLogger(__name__)
_ONLY_HERE = (
    "this server has no accounts, so it answers on its own machine only, at http://127.0.0.1. To open it to others "
    "start it with `--conf accounts FILE` (`vqseg token add` makes the file), or with `--conf open_network true` to "
    "let everybody in the network see and change everything"
)
_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")


def guard(application: FastAPI, accounts: Accounts, options: Options) -> None:
    """Put the gate in front of the running application, and its answer to who a user is in place of MONAI Label's."""
    if accounts.are_on:
        application.include_router(login.router, prefix=settings.MONAI_LABEL_API_STR)
        routes = application.router.routes
        routes.insert(0, routes.pop())
    application.dependency_overrides[get_current_user] = current_user
    application.user_middleware.insert(0, Middleware(Gate, accounts=accounts, options=options))
    limit_origins(application, options.cors_origins)
    # It was built before the application started (starlette 1.10).
    application.middleware_stack = application.build_middleware_stack()


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, accounts: Accounts, options: Options) -> None:
        self._app, self._accounts, self._options = app, accounts, options
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
        else:
            rule = rule_for(scope)
            if (refusal := await self._refusal(scope, rule)) is not None:
                # No route will put itself there, and who watches tells requests, and their studies, apart by it.
                scope["route"], scope["path_params"] = rule, rule.parameters(scope) if rule else {}
            await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope, rule: Rule | None) -> JSONResponse | None:
        """The answer to a request that goes no further, none when it may; then `scope` says who sends it."""
        if not (self._accounts.are_on or self._options.open_network or is_local(scope)):
            if not self._has_warned:  # once: others decide how often they ask
                logger.warning(_ONLY_HERE)
            self._has_warned = True
            return _answer(403, _ONLY_HERE)
        if is_foreign(scope, self._options.cors_origins):
            return _answer(403, "a page of another server may change nothing here; `--conf cors_origins` lists who may")
        if not self._accounts.are_on or (rule and rule.least == ANYONE):
            scope["user"] = DEFAULT_USER
        else:
            try:
                sender = await self._accounts.sender(Headers(scope=scope).get("authorization", ""))
            except VQSegError as error:
                logger.error("nobody can be let in: %s", error)
                return _answer(503, login.CANNOT_CHECK)
            if sender is None:
                return self._unknown()
            scope["user"] = sender
            if rule is None:
                return _answer(404, f"{scope['method']} {scope['path']}: there is no such route")
            if not rule.allows(role := role_of(sender)):
                return _answer(403, f"{sender.username} is {role or 'without a role'}; this needs {rule.least}")
        closed = closed_by(rule, scope)
        if closed and closed not in self._options.open_routes:
            return _answer(404, f"closed: {CLOSABLE[closed]}; `--conf open_routes {closed}` opens it")
        return None

    def _unknown(self) -> JSONResponse:
        answer = _answer(401, "this server needs an account: send a valid token as `Authorization: Bearer TOKEN`")
        answer.headers.append("WWW-Authenticate", 'Bearer realm="VQ-Seg"')
        if self._accounts.file:
            # A browser then asks for name and token, and so the viewer needs no login of its own.
            answer.headers.append("WWW-Authenticate", 'Basic realm="VQ-Seg", charset="UTF-8"')
        return answer


def is_local(scope: Scope) -> bool:
    """Whether a request arrived where only this machine can send one, a loopback address or a socket file, and was
    meant for it: a page of the web whose name leads to 127.0.0.1 still names itself, and a proxy may pass a name on."""
    host, port = scope.get("server") or ("", 0)
    named = _HOST.fullmatch(Headers(scope=scope).get("host", "localhost"))
    if named is None or not (port is None or _is_loopback(host)):
        return False
    name = named[1] or named[2] or ""
    return name.lower() == "localhost" or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _answer(status: int, words: str) -> JSONResponse:
    return JSONResponse({"detail": words}, status)
