"""What a client may send: so many bytes, so many once unpacked, so many voxels, and nothing of it left behind.

Reasons (monailabel 0.8.5): a body of any size is taken, unpacked and written to the temporary folder under an ending
that the client chose, and stays there when the request fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio import move_on_after
from fastapi import FastAPI, UploadFile
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vqseg.data.header import DeclaredVoxels, read_declared
from vqseg.errors import ConfigError, ImageError

from .errors_over_rest import TooLargeError
from .memory_guard import MemoryGuard
from .temporary_files import temporary_folder

_GIB = 2**30
# A form goes to the disk as it comes; any other body is held in memory, and none here needs as much as this.
_LARGEST_IN_MEMORY = 2**20
# Of a form its fields stay in memory, and of each file what comes first: starlette 1.10 allows 1000 of 1 MiB of either.
_FIELDS = {"max_fields": 20, "max_part_size": 2**18}
_FIRST_OF_A_FILE = 2**16
_LINGER_SECONDS = 5
_CLOSE = {"Connection": "close"}
_IMAGES = (".nii.gz", ".nii", ".dcm")
# What OHIF sends: the voxels of a mask, one byte each.
_BARE = ".bin"


def limit_forms(application: FastAPI) -> None:
    """Bound the memory that the forms of a running application take, whichever of its routes reads them."""
    application.router.form_limits = _FIELDS
    # There is no setting for it; the parser is made inside of `Request.form`.
    MultiPartParser.spool_max_size = _FIRST_OF_A_FILE


class BodyLimit:
    """Middleware that ends a body beyond `largest_gib` with 413, whether or not its length is said before.

    starlette 1.10 has one of its own, which knows one limit for all kinds of bodies and does not say which.
    """

    def __init__(self, app: ASGIApp, largest_gib: float) -> None:
        self._app, self._largest = app, int(largest_gib * _GIB)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        largest = self._largest if is_form else min(self._largest, _LARGEST_IN_MEMORY)
        words = f"the request's body is larger than {largest} bytes" + (" (--conf upload_gib)" if is_form else "")
        received = int(headers.get("content-length", 0))
        if received > largest:
            return await JSONResponse({"detail": words}, 413, _CLOSE)(scope, receive, _lingering(receive, send))
        received = 0

        async def receive_so_much() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > largest:
                raise HTTPException(413, words, _CLOSE)
            return message

        async def send_and_linger(message: Message) -> None:
            await (_lingering(receive, send) if received > largest else send)(message)

        await self._app(scope, receive_so_much, send_and_linger)


def _lingering(receive: Receive, send: Send) -> Send:
    """Sends an answer, and before it ends throws away for a while what is still coming.

    A connection that is closed while its client still sends is reset, and the client never reads the answer; one that
    is left open stays so, for uvicorn 0.54 does not see its end behind what nobody reads.
    """

    async def send_last(message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body"):
            return await send(message)
        await send({**message, "more_body": True})
        with move_on_after(_LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.body"})

    return send_last


@dataclass(frozen=True)
class UploadLimits:
    """Bounds on one uploaded image or mask, checked by its header: `unpacked_gib` of voxels as they are stored."""

    unpacked_gib: float
    megavoxels: float
    memory: MemoryGuard

    def check(self, upload: UploadFile, name: str = "", *, is_mask: bool = False) -> None:
        """Raises `TooLargeError`, and of an image `ConfigError` for another kind of file and `ImageError` when its
        header cannot be read; of a mask whoever reads it says so. `name` stands in messages."""
        name = name or _name(upload)
        self.memory.check_reading(self._checked(upload, name, is_mask), name)

    def _checked(self, upload: UploadFile, name: str, is_mask: bool) -> DeclaredVoxels:
        declared = _declared(upload, name, is_mask)
        for what, found, limit, option in (
            ("GiB of voxels", declared.stored_bytes / _GIB, self.unpacked_gib, "upload_unpacked_gib"),
            ("million voxels", declared.voxels / 1e6, self.megavoxels, "upload_megavoxels"),
        ):
            if found > limit:
                raise TooLargeError(
                    f"{name}: it holds {found:.3g} {what}; at most {limit:g} are taken (--conf {option})"
                )
        return declared

    @contextmanager
    def received(self, upload: UploadFile, name: str = "", *, is_mask: bool = False) -> Iterator[Path]:
        """A checked upload as a temporary file, gone when the block ends. Raises as `check` does, and `HTTPException`
        (503) when others take the memory for too long."""
        name = name or _name(upload)
        declared = self._checked(upload, name, is_mask)
        with self.memory.room_for(declared, name), temporary_folder() as folder:
            # Not the client's name for it, of which only the ending means anything.
            file = Path(folder) / f"upload{_ending(upload, is_mask)}"
            with file.open("wb") as written:
                shutil.copyfileobj(upload.file, written)
            yield file


def _declared(upload: UploadFile, name: str, is_mask: bool) -> DeclaredVoxels:
    """What an upload says of its voxels; a mask whose header cannot be read has none, for they are never read."""
    upload.file.seek(0)
    try:
        if _ending(upload, is_mask) == _BARE:
            return DeclaredVoxels((upload.size or 0,), 8)
        return read_declared(upload.file, name)
    except ImageError:
        if is_mask:
            return DeclaredVoxels((0,), 8)
        raise
    finally:
        upload.file.seek(0)


def _name(upload: UploadFile) -> str:
    return Path(upload.filename or "upload").name


def _ending(upload: UploadFile, is_mask: bool) -> str:
    """Ending of the file's name, where it is one that is read; monailabel 0.8.5 takes a nameless file for NIfTI.

    Raises `ConfigError` for an image of another kind.
    """
    name = (upload.filename or ".nii.gz").lower()
    for ending in (*_IMAGES, _BARE) if is_mask else _IMAGES:
        if name.endswith(ending):
            return ending
    if is_mask:
        return ""
    raise ConfigError(f"{Path(name).name}: expected an image that ends in {', '.join(_IMAGES)}")
