"""`POST /infer/{model}`, in front of MONAI Label's own: in line for a check, which a slow PACS may keep long, then in
line for the model.

Reasons (monailabel 0.8.5): it computes in the event loop, whoever else asks, and goes on when the client has left; and
its temporary files stay when a request fails.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.endpoints import infer
from monailabel.interfaces.utils.app import app_instance

from vqseg.errors import ConfigError

from .errors_over_rest import UnknownError
from .pacs_datastore import PACSStudies
from .request_rules import (
    AsUser,
    ClientAddress,
    asked_version,
    clean_up,
    cleaned_up,
    image_is_file,
    json_object,
    without_reserved,
)

router = APIRouter()


@dataclass(frozen=True)
class _Asked:
    """A checked request for a mask: of a `file`, of the image of a `session`, or of one of the datastore."""

    model: str
    image: str
    session: str | None
    file: UploadFile | None
    params: dict[str, Any]
    output: infer.ResultType | None


@router.post("/infer/{model}", tags=["Infer"], summary="Segment an image")
async def run_inference(
    request: Request,
    background: BackgroundTasks,
    model: str,
    user: AsUser,
    address: ClientAddress,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
) -> Any:
    """`params.model_version` names another version than the live one. `label`, which holds scribbles, may be sent and
    is not used."""
    app, arrived = app_instance(), time.monotonic()
    # For the audit log: of what is sent, or kept in a session, no study of the datastore is segmented. A DICOM SEG is
    # always of one.
    is_study = output == infer.ResultType.dicom_seg or not (session_id or file)
    request.state.image = image if is_study else session_id

    def check() -> _Asked:
        given = {**without_reserved(json_object(params)), "client_address": address}
        return _checked(app, model, image, session_id, given, file, output)

    asked = await app.checks.run(request, check)
    spent = time.monotonic() - arrived
    return await app.inferences.run(
        request, lambda: _answer(app, asked, background), lambda: clean_up(background), spent=spent
    )


def _checked(
    app: Any,
    model: str,
    image: str,
    session_id: str,
    params: dict[str, Any],
    file: UploadFile | None,
    output: infer.ResultType | None,
) -> _Asked:
    params = {**params, "model_version": asked_version(params)}
    config = app.check_model(model, params["model_version"])
    if output == infer.ResultType.dicom_seg and not (image and isinstance(app.datastore(), PACSStudies)):
        raise ConfigError("output=dicom_seg: only for an image of a PACS (?image=ID), not of a folder or a session")
    sessions = app.sessions()  # empty, and so false, after a start of the server, though the folder has some
    session = sessions.get_session(session_id) if session_id and sessions is not None else None
    if session_id and not session:
        raise UnknownError("session", session_id, [])
    if session:
        app.memory.check_file(Path(session.image), config)
    elif file:
        app.uploads.check(file)
    elif not image:
        raise ConfigError("no image given: name one of the datastore (?image=ID) or send one as `file`")
    else:
        studies = app.datastore()
        app.check_image(image)
        is_pacs = isinstance(studies, PACSStudies)
        # What must be fetched first is checked when it was.
        if at_hand := studies.image_on_disk(image) if is_pacs else Path(studies.get_image_uri(image)):
            app.memory.check_file(at_hand, config)
    return _Asked(model, image, session.image if session else None, file, params, output)


def _answer(app: Any, asked: _Asked, background: BackgroundTasks) -> Any:
    with cleaned_up(background):
        if asked.output == infer.ResultType.dicom_seg:
            return _segmentation_object(app, asked, background)
        with _image_of(app, asked) as image:
            result = app.infer({**asked.params, "model": asked.model, "image": image})
        return infer.send_response(app.datastore(), result, asked.output, background)


@contextmanager
def _image_of(app: Any, asked: _Asked) -> Iterator[str]:
    """Path or id for `VQSegApp.infer`, which takes it for a path inside this block alone."""
    if not (asked.session or asked.file):
        yield asked.image
        return
    token = image_is_file.set(True)
    try:
        if asked.session:
            yield asked.session
        else:
            with app.uploads.received(asked.file) as file:
                yield str(file)
    finally:
        image_is_file.reset(token)


def _segmentation_object(app: Any, asked: _Asked, background: BackgroundTasks) -> FileResponse:
    """The answer as DICOM SEG. monailabel 0.8.5 needs `label_info` for it and names segments by their position."""
    studies, image = app.datastore(), asked.image
    result = app.infer({**asked.params, "model": asked.model, "image": image, "result_extension": ".nii.gz"})
    mask = Path(result["file"])
    try:
        file = studies.as_segmentation(image, mask, result["params"]["label_names"], result["params"]["model_version"])
    finally:
        mask.unlink(missing_ok=True)
    background.add_task(file.unlink, missing_ok=True)
    return FileResponse(file, media_type="application/dicom", filename=f"{image}.dcm")
