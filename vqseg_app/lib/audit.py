"""Who did what to which study: one JSON line for every request that changes something, infers or downloads.

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
from urllib.parse import parse_qs

from .label_versions import utc_now
from .pacs import UID_PATTERN

logger = logging.getLogger(__name__)
_LARGEST_BYTES, _FORMER_FILES = 20_000_000, 20
_READING = ("GET", "HEAD", "OPTIONS")
_DOWNLOADS = {
    "/datastore/image",
    "/datastore/label",
    "/datastore/dataset",
    "/vqseg/labels/{image}/{version}",
}
_PROXY = "/proxy/dicom/{path:path}"
_SERIES = re.compile(rf"/studies/({UID_PATTERN})(?:/series/({UID_PATTERN}))?")
# The viewer reads a series slice by slice: within this time that is one access.
_ONE_ACCESS_SECONDS = 600.0
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
        image = study_of(scope, route)
        if method in _READING and not (method == "GET" and (route in _DOWNLOADS or (route == _PROXY and image))):
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
        if route == _PROXY and self._is_known(*map(str, line.values())):
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
    """The id of the study of a request: of its path, its query, or what its route noted as `request.state.image`."""
    noted = (scope.get("state") or {}).get("image") or (scope.get("path_params") or {}).get("image")
    if route == _PROXY:
        found = _SERIES.search(scope["path"])
        return (found[2] or found[1]) if found else None
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    named = next((query[name][0] for name in ("image", "label", "id") if name in query), None)
    return str(noted or named)[:_LONGEST_ID] if noted or named else None


def _version_of(scope: Mapping[str, Any]) -> str | None:
    """The version in the path, or the one that the route noted as `request.state.version`."""
    version = (scope.get("state") or {}).get("version") or (scope.get("path_params") or {}).get("version")
    return str(version)[:_LONGEST_ID] if version else None


def _user(scope: Mapping[str, Any]) -> str | None:
    # Where an account is checked, starlette's convention is to leave it there.
    user = scope.get("user")
    return str(getattr(user, "username", None) or getattr(user, "display_name", "")) or None
