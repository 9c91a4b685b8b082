"""What a request may carry into MONAI Label's functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, Request
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from pydantic_core import from_json

from vqseg.errors import ConfigError

from .errors_over_rest import TooLargeError

# Who calls a route. Who may is decided in front of it (access.RULES); this is MONAI Label's second line behind that,
# where its own accounts are switched on.
AsUser = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
AsAnnotator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
AsAdmin = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]


def client_address(request: Request) -> str:
    """Where a request comes from; behind a reverse proxy all come from there."""
    return request.client.host if request.client else ""


ClientAddress = Annotated[str, Depends(client_address)]


def check_background(run_sync: bool = False) -> None:
    """A dependency of routes that start a child. Raises `ConfigError`.

    monailabel 0.8.5 can do the work in the server itself, where nothing limits it and stopping it is stopping the
    server.
    """
    if run_sync:
        raise ConfigError("run_sync: nothing runs inside the request; leave it out, and GET tells how far the work is")


InBackground = Depends(check_background)

# monailabel 0.8.5 merges `params` over these keys of the request, which come from the address instead.
_RESERVED = (
    "image",
    "model",
    "session",
    "label",
    "label_tag",
    "bundle_path",
    "save_label",
    "keep_signals",
    "client_address",
    "_image_id",
)

# A child gets its request as one command-line argument, which Linux cuts off at 128 KiB; monailabel 0.8.5 then leaves
# the task in the state SUBMITTED for ever.
_LARGEST_BODY = 64 * 1024

# More than the levels of the index above what a client sends.
_INDEX_DEPTH = 16

# What a client may call the live version by.
LIVE = "live"

# Set while the image of a request is a file that this very request uploaded, or that of its session.
image_is_file: ContextVar[bool] = ContextVar("image_is_file", default=False)


def json_object(text: str | None, name: str = "params") -> dict[str, Any]:
    """Parse a form field. Raises `ConfigError`."""
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: expected a JSON object, got {type(content).__name__}")
    check_storable(content, name)
    return content


def check_storable(content: Any, name: str) -> None:
    """Raises `ConfigError` for what Python reads as JSON but the index of the datastore could not hold.

    That is NaN, infinity (also as 1e999), half a character, and lists in lists without end: pydantic's parser, which
    reads the index on every start, takes none of them.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        from_json(f"{'[' * _INDEX_DEPTH}{text}{']' * _INDEX_DEPTH}".encode(), allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid JSON ({error})") from None


def without_reserved(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters a client may set."""
    return {key: value for key, value in params.items() if key not in _RESERVED}


def asked_version(params: Mapping[str, Any]) -> str | None:
    """The model version that a request for a mask names, none for the live one. Raises `ConfigError`.

    A client's panel may send an option that nobody filled in.
    """
    version = params.get("model_version")
    if version in (None, "", LIVE):
        return None
    if not isinstance(version, str):
        raise ConfigError(f'model_version={version!r}: expected text, the name of a version or "{LIVE}"')
    return version


def check_body(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Body of a request that starts a child. Raises `TooLargeError` or `ConfigError`."""
    params = dict(params or {})
    check_storable(params, "body")
    if len(json.dumps(params)) > _LARGEST_BODY:
        raise TooLargeError(f"the request's body is larger than {_LARGEST_BODY} bytes")
    if not isinstance(params.get("gpus", ""), (str, type(None))):
        raise ConfigError(f"gpus={params['gpus']!r}: expected text like `all` or `0,1`")
    return params


@contextmanager
def cleaned_up(background: BackgroundTasks) -> Iterator[None]:
    """Remove a result's temporary file when the request fails too; monailabel 0.8.5 does so only after success."""
    try:
        yield
    except BaseException:
        clean_up(background)
        raise


def clean_up(background: BackgroundTasks) -> None:
    """Do now what was to be done after the answer."""
    for task in background.tasks:
        task.func(*task.args, **task.kwargs)
