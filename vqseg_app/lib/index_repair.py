"""The index of a studies folder that cannot be read is set aside, and made anew of what is known: of the index itself
where only numbers that JSON does not know are in it, else of the files and of the versions of the labels.

monailabel 0.8.5 does not start with such an index, and keeps to what it has in memory while it runs.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, LocalDatastoreModel
from pydantic import ValidationError
from pydantic_core import from_json

from vqseg.files import sha256

from .label_versions import LabelVersions

logger = logging.getLogger(__name__)


def fault_of(index: Path) -> str | None:
    """What is wrong with an index, in words; none when it can be read or is not there."""
    try:
        content = index.read_bytes()
    except FileNotFoundError:
        return None
    if not content.strip(b"\0 \n"):
        return "it is empty"
    try:
        LocalDatastoreModel.model_validate(from_json(content, allow_inf_nan=False))
    except ValidationError:
        return "it is no index of a datastore"
    except (ValueError, RecursionError) as error:
        return f"it is no valid JSON: {error}"
    return None


def without_nan(index: Path) -> LocalDatastoreModel | None:
    """An index that is whole but for NaN and infinity, which become null; none when it is broken otherwise."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"), parse_constant=lambda _: None, parse_float=_finite)
        return LocalDatastoreModel.model_validate(content)
    except (OSError, ValueError, RecursionError):
        return None


def set_aside(index: Path, fault: str) -> None:
    """Rename an index, so that a person can look at it."""
    time = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    place = index.with_name(f"{index.stem}.broken-{time}{index.suffix}")
    os.replace(index, place)
    logger.error(
        "the index of the studies, %s, cannot be read (%s): it is kept as %s, and made anew of the files and of the "
        "versions of the labels; what was noted of images that were offered is lost",
        index.name,
        fault,
        place.name,
    )


def recover_label_details(content: LocalDatastoreModel, versions: LabelVersions) -> None:
    """Give each label without names what its version knows, if it is that very file."""
    for image, study in content.objects.items():
        for tag, label in study.labels.items():
            file = Path(content.label_path(tag)) / f"{image}{label.ext}"
            if "label_info" not in label.info and file.is_file():
                study.labels[tag] = DataModel(
                    info={**_details(versions, image, tag, file), **label.info}, ext=label.ext
                )


def _details(versions: LabelVersions, image: str, tag: str, file: Path) -> dict[str, Any]:
    known = [version for version in versions.of(image) if version.tag == tag]
    checksum = sha256(file) if known else None
    return next((version.label_details() for version in reversed(known) if version.sha256 == checksum), {})


def _finite(number: str) -> float | None:
    return None if abs(float(number)) == float("inf") else float(number)
