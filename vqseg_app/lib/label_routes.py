"""The versions of labels over REST: what there was, by whom, and a former one back again."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance

from .bulkhead import AsksForStudies
from .label_versions import LabelVersion
from .request_rules import AsAnnotator, AsUser

router = APIRouter(prefix="/vqseg/labels", tags=["Datastore"], dependencies=[AsksForStudies])
_LATEST = 50
# A number, or the UID of a series.
Version = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]


@router.get("", summary="Who labelled how much and when, and the latest labels")
def list_labels(user: AsUser) -> Any:
    versions = sorted(app_instance().datastore().every_label_version(), key=lambda version: version.time, reverse=True)
    by_day = sorted(Counter((version.time[:10], annotator(version) or "") for version in versions).items())
    return {
        "total": len(versions),
        "by_day": [{"day": day, "user": name, "labels": count} for (day, name), count in by_day],
        "latest": [
            {
                **version.model_dump(include={"image", "tag", "version", "time", "model_version"}),
                "user": annotator(version),
            }
            for version in versions[:_LATEST]
        ],
    }


def annotator(version: LabelVersion) -> str | None:
    """The name that came with a label: that of the account where there are accounts, else what the client says."""
    name = version.info.get("client_id")
    return name if isinstance(name, str) and name else version.user


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
