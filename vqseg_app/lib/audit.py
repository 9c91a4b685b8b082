"""Who did what to which study: one JSON line for every request that changes something, infers, downloads or is refused.

`<run>/audit.jsonl`, and `audit.jsonl.1` ... for what came before. Nothing of a request's or a file's content is in it:
no parameters but the id of the study and the version of a label or model, so no name of a patient either.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from monailabel.endpoints.user.auth import DEFAULT_USER
from starlette.datastructures import QueryParams

from .label_versions import utc_now
from .pacs import UID_PATTERN
from .pacs_proxy import fully_decoded

logger = logging.getLogger(__name__)
_LARGEST_BYTES, _FORMER_FILES = 20_000_000, 20
_READING = ("GET", "HEAD", "OPTIONS")
_DOWNLOADS = {
    "/datastore/image",
    "/datastore/label",
    "/datastore/dataset",
    "/vqseg/labels/{image}/{version}",
    "/vqseg/reports/{name}",
    "/vqseg/studies/{image}/picture",
    "/vqseg/studies/{image}/codes",
}
# By which parameter a route means a study. It reads no other, so a study in any other is not the one that it acts on.
_QUERIED = {
    "DELETE /datastore/": "id",
    "PUT /datastore/": "image",
    "DELETE /datastore/image": "id",
    "GET /datastore/image": "image",
    "HEAD /datastore/image": "image",
    "PUT /datastore/image": "image",
    "GET /datastore/image/info": "image",
    "PUT /datastore/image/info": "image",
    "DELETE /datastore/label": "id",
    "GET /datastore/label": "label",
    "HEAD /datastore/label": "image",
    "PUT /datastore/label": "image",
    "GET /datastore/label/info": "label",
    "PUT /datastore/label/info": "label",
    "PUT /datastore/updatelabelinfo": "label",
    "POST /infer/{model}": "image",
}
_PROXY = "/proxy/dicom/{path:path}"
_SERIES = re.compile(rf"/studies/({UID_PATTERN})(?:/series/({UID_PATTERN}))?")
_REFUSED = (401, 403)
# The viewer reads a series slice by slice, and the dashboard shows its small pictures again and again: within this time
# that is one access. So is what nobody known asks for again and again, or whoever has no account could fill the log
# until it holds nothing else.
_ONE_ACCESS_SECONDS = 600.0
_SHOWN_AGAIN = (_PROXY, "/vqseg/studies/{image}/picture", "/vqseg/studies/{image}/codes")
_LONGEST_ID = 256


class AuditLog:
    """Thread-safe. A disk that is full costs lines, which the server's log says, and no request."""

    def __init__(self, run: Path, largest_bytes: int = _LARGEST_BYTES) -> None:
        self._file, self._largest = run / "audit.jsonl", largest_bytes
        self._handler: _Lines | None = None
        self._seen: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def note(self, scope: Mapping[str, Any], route: str, status: int) -> None:
        """Write a line, if the request of this ASGI `scope` is one that counts."""
        method = scope["method"]
        image, is_refused = study_of(scope, route), status in _REFUSED
        shows_image = route in _DOWNLOADS or (route == _PROXY and image) or _noted(scope).get("shows_image")
        is_download = method == "GET" and shows_image
        if method in _READING and not (is_download or is_refused):
            return
        line = {
            "user": _user(scope),
            "client": (scope.get("client") or [None])[0],
            "method": method,
            "route": route,
            "image": image,
            "version": _version_of(scope),
            "status": status,
        }
        if route in _SHOWN_AGAIN and self._is_known(*map(str, line.values())):
            return
        if is_refused and line["user"] is None and self._is_known(str(line["client"]), method, route, str(status)):
            return
        self._write({"time": utc_now(), **line})

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        with self._lock:
            if self._handler is not None:
                self._handler.close()
                self._handler = None

    def _is_known(self, *access: str) -> bool:
        with self._lock:
            now = time.monotonic()
            self._seen = {key: seen for key, seen in self._seen.items() if now - seen < _ONE_ACCESS_SECONDS}
            known = access in self._seen
            self._seen.setdefault(access, now)
        return known

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line)
        with self._lock:
            if self._handler is None:
                try:
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    self._handler = _Lines(
                        self._file, maxBytes=self._largest, backupCount=_FORMER_FILES, encoding="utf-8"
                    )
                except OSError as error:
                    logger.error("the audit log cannot be written (%s): %s", error.strerror, text)
                    return
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, text, None, None))


class _Lines(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logger.error("the audit log cannot be written: %s", record.getMessage(), exc_info=False)


def study_of(scope: Mapping[str, Any], route: str) -> str | None:
    """The id of the study of a request, or of its session: what its route noted as `request.state.image`, also none,
    else what stands in its path or in the parameter of its query by which the route means a study."""
    if route == _PROXY:
        found = _SERIES.search(fully_decoded(scope["path"]))
        return (found[2] or found[1]) if found else None
    path = scope.get("path_params") or {}
    if "image" in _noted(scope):
        study = _noted(scope)["image"]
    else:
        study = path.get("image") or path.get("session_id") or _queried(scope, route)
    return str(study)[:_LONGEST_ID] if study else None


def _queried(scope: Mapping[str, Any], route: str) -> str | None:
    # As the route itself reads it: of a parameter that is repeated, the last value.
    name = _QUERIED.get(f"{scope['method']} {route}")
    return QueryParams(scope.get("query_string", b"")).get(name) if name else None


def _noted(scope: Mapping[str, Any]) -> Mapping[str, Any]:
    return scope.get("state") or {}


def _version_of(scope: Mapping[str, Any]) -> str | None:
    """The version in the path, or the one that the route noted as `request.state.version`."""
    version = _noted(scope).get("version") or (scope.get("path_params") or {}).get("version")
    return str(version)[:_LONGEST_ID] if version else None


def _user(scope: Mapping[str, Any]) -> str | None:
    # Where an account is checked, starlette's convention is to leave it there.
    user = scope.get("user")
    if user is DEFAULT_USER:  # it stands for everybody where there are no accounts
        return None
    return str(getattr(user, "username", None) or getattr(user, "display_name", "")) or None
