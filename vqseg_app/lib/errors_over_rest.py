"""What can be mended by the client becomes a 4xx with `{"detail": words}`, never a 500 with a stack trace; what the
server's disk refuses becomes a 507."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.exceptions import HTTPException

from vqseg.errors import ConfigError, DataError, ImageError, ModelError, TrainingError, VQSegError

from .pacs import PACSError


class UnknownError(VQSegError):
    """A name in the request that nothing here has."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        listed = sorted(known)
        shown = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
        super().__init__(f"unknown {kind} {name!r}; known: {shown or 'none'}")


class ConflictError(VQSegError):
    """The request is right, but not at this time."""


class TooLargeError(VQSegError):
    """The request is larger than what is taken."""


_STATUS: dict[type[VQSegError], int] = {
    UnknownError: 404,
    ConfigError: 400,
    TooLargeError: 413,
    ImageError: 422,
    DataError: 409,
    ModelError: 409,
    TrainingError: 409,
    ConflictError: 409,
    PACSError: 502,
}


# A limit on the size of files, and a quota, are as good as a full disk.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def add_handlers(application: FastAPI) -> None:
    """Teach the running application to answer our errors and MONAI Label's in words."""
    application.add_exception_handler(VQSegError, _in_words)
    application.add_exception_handler(MONAILabelException, _of_monai_label)
    application.add_exception_handler(RequestValidationError, _of_fastapi)
    application.add_exception_handler(OSError, _of_disk)
    application.add_exception_handler(HTTPException, _of_http)
    # The handlers are read when the middleware is built, which has happened by now (starlette 1.10).
    application.middleware_stack = application.build_middleware_stack()


def _of_disk(request: Request, error: Exception) -> JSONResponse:
    words = disk_fault(error)
    if words is None:
        raise error
    return JSONResponse({"detail": words}, 507)


async def _of_http(request: Request, error: Exception) -> Response:
    """fastapi takes whatever happens while a form is read for the client's fault."""
    assert isinstance(error, HTTPException)
    words = disk_fault(error.__cause__)
    return JSONResponse({"detail": words}, 507) if words else await http_exception_handler(request, error)


def disk_fault(error: BaseException | None) -> str | None:
    """What to tell the client of an error of the server's disk, none of another one."""
    if not isinstance(error, OSError) or error.errno not in (*_NO_SPACE, *_NO_PERMISSION):
        return None
    if error.errno in _NO_SPACE:
        return "the disk of the server is full: make room there, and send it again"
    name = Path(os.fsdecode(error.filename)).name if error.filename else "a file"
    return f"the server may not do this with {name} ({error.strerror}): whoever runs it has to change its permissions"


def _in_words(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
    return JSONResponse({"detail": without_folder(str(error))}, status)


def _of_monai_label(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MONAILabelException)
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        status = 404
    else:
        status = 400 if error.error == MONAILabelError.INVALID_INPUT else 500
    return JSONResponse({"detail": without_folder(error.msg)}, status)


async def _of_fastapi(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    broken = next((found for found in error.errors() if found["type"] == "json_invalid"), None)
    if broken is None:
        # fastapi sends back what it was sent, and fails on what JSON has no words for: bytes, NaN, half a character.
        told = [{key: value for key, value in found.items() if key != "input"} for found in error.errors()]
        return await request_validation_exception_handler(request, RequestValidationError(told))
    return JSONResponse({"detail": f"body: not valid JSON ({broken.get('ctx', {}).get('error')})"}, 400)


def without_folder(words: str) -> str:
    """The places of files on the server are nobody's business, but their names are."""
    words = re.sub(rf"{re.escape(tempfile.gettempdir())}/(?:[^/\s:]+/)*", "", words)
    return words.replace(f"{settings.MONAI_LABEL_STUDIES.rstrip('/')}/", "")
