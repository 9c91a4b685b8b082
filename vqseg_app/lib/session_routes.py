"""Routes of sessions: an image, or a series, that is kept for a while to be segmented.

Reasons (monailabel 0.8.5): files are written under the names that the client gives them, and stay in the temporary
folder when the request fails; an archive is unpacked wherever its entries say and however large they are; all of it is
done in the event loop.
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, UploadFile
from monailabel.endpoints import session
from monailabel.interfaces.utils.app import app_instance
from starlette.exceptions import HTTPException

from vqseg.errors import ConfigError

from .archives import ARCHIVES, check_no_program, unpack
from .bulkhead import AsksForSession
from .request_rules import AsUser
from .temporary_files import temporary_folder

router = APIRouter(prefix="/session", tags=["Session"], dependencies=[AsksForSession])
_PLAIN = re.compile(r"[^\W_][\w .()+@-]{0,99}")
_ENDINGS = (".nii.gz", ".nii", ".dcm", *ARCHIVES)


@router.get("/{session_id}", summary="A session, or the image it holds")
def read_session(request: Request, user: AsUser, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    request.state.shows_image = image  # for the audit log
    sessions = app_instance().sessions()
    held = sessions.get_session(session_id) if sessions is not None else None
    if image and held and not Path(held.image).is_file():
        raise ConfigError(f"session {session_id}: it holds several files, or none any more, which are no image to send")
    return session.get_session(session_id, update_ts, image)


@router.delete("/{session_id}", summary="Delete Session")
def remove_session(user: AsUser, session_id: str) -> Any:
    return session.remove_session(session_id)


@router.put("/", summary="Keep an image for a while, to be segmented")
def add_session(
    request: Request,
    user: AsUser,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    """`uncompress`: the one file is a zip or tar archive of a series."""
    app = app_instance()
    sessions, session_id = app.sessions(), str(uuid.uuid4())
    if sessions is None:
        raise HTTPException(406, "sessions are off (MONAI_LABEL_SESSIONS)")
    request.state.image = session_id  # for the audit log
    with temporary_folder() as folder:
        received = Path(folder) / "received"
        received.mkdir()
        written = [received / _name(file, number, len(files)) for number, file in enumerate(files)]
        for path, upload in zip(written, files, strict=True):
            with path.open("wb") as copy:
                shutil.copyfileobj(upload.file, copy)
        kept = written[0] if len(written) == 1 else received
        if uncompress and len(written) == 1:
            kept = Path(folder) / "unpacked"
            unpack(written[0], kept, app.uploads.unpacked_gib)
        try:
            session_id, info = sessions.add_session(str(kept), expiry, session_id=session_id)
        except BaseException:
            sessions.remove_session(session_id)
            raise
    return {"session_id": session_id, "session_info": info.to_json()}


def _name(upload: UploadFile, number: int, count: int) -> str:
    """What the client calls it, by which messages name it, unless that is no plain name."""
    name = (upload.filename or "").replace("\\", "/").rpartition("/")[2]
    check_no_program(name)
    if not _PLAIN.fullmatch(name):
        name = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
        return f"{number:05d}{name}"
    return name if count == 1 else f"{number:05d}-{name}"
