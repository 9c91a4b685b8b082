"""`GET /datastore/dataset`: the labelled studies as one archive.

Reasons (monailabel 0.8.5): it is made in the event loop, stays in the temporary folder for ever, and ends in a 500 when
nothing is labelled.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Query
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance

from vqseg.errors import ConfigError, DataError

from .bulkhead import Bulkhead
from .pacs_datastore import PACSStudies
from .request_rules import AsAnnotator, cleaned_up
from .temporary_files import temporary_folder

# Each takes as much of the disk as the studies do.
router = APIRouter(prefix="/datastore", tags=["Datastore"], dependencies=[Depends(Bulkhead("dataset", 1, 1))])


@router.get("/dataset", summary="Download full dataset as ZIP archive")
def download_dataset(
    user: AsAnnotator, afterwards: BackgroundTasks, limit_cases: Annotated[int | None, Query(ge=1)] = None
) -> FileResponse:
    """The first `limit_cases` of the labelled studies."""
    studies = app_instance().datastore()
    if isinstance(studies, PACSStudies):
        raise ConfigError("the studies are in a PACS: an archive of them is made there")
    labelled = studies.datalist()[:limit_cases]
    if not labelled:
        raise DataError("no study is labelled yet: there is nothing to put into an archive")
    folder = temporary_folder()
    afterwards.add_task(folder.cleanup)
    with cleaned_up(afterwards):
        archive = Path(folder.name) / "dataset.zip"
        _write(archive, labelled, studies.json())
    return FileResponse(archive, media_type="application/zip", filename=archive.name)


def _write(archive: Path, labelled: list[dict[str, str]], index: Any) -> None:
    # Images and masks are packed already.
    with zipfile.ZipFile(archive, "x", zipfile.ZIP_STORED) as opened:
        for study in labelled:
            for kind, file in study.items():
                opened.write(file, f"{kind}/{Path(file).name}")
        opened.writestr("metadata.json", json.dumps(index))
