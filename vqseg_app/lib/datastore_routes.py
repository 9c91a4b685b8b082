"""Routes of the datastore, in front of those of MONAI Label 0.8.5, for the reasons in `routes.py`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints import datastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum
from starlette.exceptions import HTTPException

from vqseg.errors import ConfigError

from .accounts import signature
from .bulkhead import AsksForStudies
from .errors_over_rest import UnknownError
from .labels import names_of
from .request_rules import AsAdmin, AsAnnotator, AsUser, ClientAddress, json_object

router = APIRouter(prefix="/datastore", tags=["Datastore"], dependencies=[AsksForStudies])
FormText = Annotated[str, Form()]
_ALGORITHMS = ("SHA256", "SHA512", "MD5")


@router.get("/", summary="Get All Images/Labels from datastore")
def describe_datastore(user: AsUser, output: datastore.ResultType = datastore.ResultType.stats) -> Response:
    # What a training reads must be fetched first, however long a PACS takes; all else is told at once.
    is_told = output is not datastore.ResultType.train
    content = asyncio.run(_known(output)) if is_told else datastore.datastore(output)
    # As JSON in this thread: fastapi would turn thousands of studies into it in the event loop.
    return JSONResponse(content)


async def _known(output: datastore.ResultType) -> Any:
    """A coroutine, because the listing of a slow PACS is that of before in an event loop alone; this one is its own."""
    return datastore.datastore(output)


@router.delete("/", summary="Remove Image and corresponding labels", include_in_schema=False)
@router.delete("/image", summary="Remove Image and corresponding labels")
def remove_image(user: AsAdmin, id: str) -> Any:
    return datastore.remove_image(id, user.username)


@router.delete("/label", summary="Remove Label")
def remove_label(user: AsAdmin, id: str, tag: str) -> Any:
    return datastore.remove_label(id, tag, user.username)


@router.get("/image", summary="Download an image")
def download_image(user: AsUser, image: str, check_sum: str | None = None) -> Any:
    _compare(image, check_sum)
    return datastore.download_image(image)


@router.head("/image", include_in_schema=False)
def look_for_image(user: AsUser, image: str, check_sum: str | None = None) -> Any:
    _compare(image, check_sum)
    return datastore.download_image(image, check_only=True)


def _compare(image: str, check_sum: str | None) -> None:
    """monailabel 0.8.5 fails on any other algorithm, and takes letters of its name away from the digest."""
    if not check_sum:
        return
    algorithm, _, digest = (check_sum if ":" in check_sum else f"{_ALGORITHMS[0]}:{check_sum}").partition(":")
    if algorithm not in _ALGORITHMS:
        raise ConfigError(f"check_sum={check_sum[:100]!r}: expected ALGORITHM:DIGEST, with {', '.join(_ALGORITHMS)}")
    file = app_instance().datastore().get_image_uri(app_instance().check_image(image))
    if digest.lower() != file_checksum(file, algorithm).partition(":")[2]:
        raise HTTPException(404, "the image has another checksum")


@router.get("/label", summary="Download a label")
def download_label(user: AsUser, label: str, tag: str) -> Any:
    return datastore.download_label(label, tag)


@router.head("/label", include_in_schema=False)
def look_for_label(user: AsUser, image: str, tag: str) -> Any:
    return datastore.download_label(image, tag, check_only=True)


@router.put("/", include_in_schema=False)
@router.put("/image", summary="Add an image")
def add_image(
    request: Request,
    user: AsAnnotator,
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: FormText = "{}",
) -> Any:
    app, name = app_instance(), image or Path(file.filename or "").name.partition(".")[0]
    request.state.image = name  # for the audit log
    info = {**json_object(params), "user": user.username}
    with app.uploads.received(file, name) as received:
        return {"image": app.datastore().add_image(name, str(received), info)}


@router.put("/label", summary="Submit a label")
def save_label(
    user: AsAnnotator,
    address: ClientAddress,
    image: str,
    label: Annotated[UploadFile, File()],
    params: FormText = "{}",
    tag: str = DefaultLabelTag.FINAL.value,
) -> Any:
    given, app = json_object(params), app_instance()
    proposed = app.proposals.version(image, given.get("client_id"), address)
    info = given | {"model_version": given.get("model_version") or proposed} | signature(user)
    with app.uploads.received(label, image, is_mask=True) as received:
        kept = app.datastore().save_label(image, str(received), tag or DefaultLabelTag.FINAL.value, info)
    return {**(app.on_save_label(image, kept) or {}), "image": image, "label": kept}


@router.get("/image/info", summary="What is kept with an image")
def image_info(user: AsUser, image: str) -> Any:
    return app_instance().datastore().get_image_info(app_instance().check_image(image))


@router.put("/image/info", summary="Add to what is kept with an image")
def update_image_info(user: AsAnnotator, image: str, info: FormText = "{}") -> Any:
    json_object(info, "info")
    app_instance().check_image(image)
    return datastore.update_image_info(image, info, user.username)


@router.get("/label/info", summary="What is kept with a label")
def label_info(user: AsUser, label: str, tag: str) -> Any:
    studies = app_instance().datastore()
    if tag not in studies.get_labels_by_image_id(app_instance().check_image(label)):
        raise UnknownError(f"label ({tag})", label, studies.get_labeled_images(tag))
    return studies.get_label_info(label, tag)


@router.put("/label/info", summary="Add to what is kept with a label")
def update_label_info(user: AsAnnotator, label: str, tag: str, info: FormText = "{}") -> Any:
    names_of(json_object(info, "info").get("label_info"))
    return datastore.update_label_info(label, tag, info, user.username)


@router.put("/updatelabelinfo", include_in_schema=False)
def update_label_info_as_before(user: AsAnnotator, label: str, tag: str, params: FormText = "{}") -> Any:
    return update_label_info(user, label, tag, params)
