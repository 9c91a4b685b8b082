"""The versions of labels over REST: what there was, by whom, and a former one back again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance

from .request_rules import AsAnnotator, AsUser

router = APIRouter(prefix="/vqseg/labels", tags=["Datastore"])
# A number, or the UID of a series.
Version = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]


@router.get("/{image}", summary="Every label of an image that was ever kept: who, when, from which model")
def list_versions(image: str, user: AsUser) -> Any:
    versions = app_instance().datastore().label_versions(image)
    return {"image": image, "versions": [version.model_dump(exclude={"image"}) for version in versions]}


@router.get("/{image}/{version}", summary="Download a former label")
def download_version(image: str, version: Version, user: AsUser) -> FileResponse:
    file = app_instance().datastore().label_version_file(image, version)
    return FileResponse(file, filename=f"{image}_{version}{''.join(file.suffixes)}")


@router.post("/{image}/{version}/restore", summary="Make a former label the final one")
def restore_version(image: str, version: Version, user: AsAnnotator) -> Any:
    app = app_instance()
    label = app.datastore().restore_label(app.check_image(image), version, user.username)
    app.on_save_label(image, label)
    return {"image": image, "label": label}
