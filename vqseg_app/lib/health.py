"""Does the server live, and is it ready for clients: for whoever starts it anew or sends clients to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.utils.app import app_instance

from vqseg.errors import VQSegError

from .live_model import LiveModel
from .request_rules import AsUser

router = APIRouter(prefix="/vqseg/health", tags=["App"])
_FINE = "ok"
# Room for the labels of a day and a checkpoint.
_LEAST_FREE_BYTES = 500_000_000


@router.get("/live", summary="Whether the server answers at all")
async def live() -> dict[str, bool]:
    # In the event loop: no thread need be free for it.
    return {"live": True}


@router.get("/ready", summary="Whether studies, model and disk are there; 503 when one is not")
def ready() -> JSONResponse:
    # Without the words, which name the PACS: whoever sends clients here has no account.
    found = readiness()
    checks = {name: _FINE if words == _FINE else "failing" for name, words in found["checks"].items()}
    return JSONResponse({"ready": found["ready"], "checks": checks}, 200 if found["ready"] else 503)


@router.get("", summary="Both, and what is wrong; 200 even when the server is not ready")
def health(user: AsUser) -> dict[str, Any]:
    # What keeps nobody from working, but should be mended.
    fault = app_instance().live.store.pointer_fault()
    return {"live": True, **readiness(), **({"warnings": {"model": fault}} if fault else {})}


def readiness() -> dict[str, Any]:
    """`ready`, and by name of a check `ok` or what is wrong."""
    app = app_instance()
    local = [Path(app.studies)] if Path(app.studies).is_absolute() else []
    checks = {
        "datastore": datastore_fault(app.datastore(), local) or _FINE,
        "model": model_fault(app.live) or _FINE,
        "disk": disk_fault([app.run, *local]) or _FINE,
    }
    return {"ready": all(words == _FINE for words in checks.values()), "checks": checks}


def datastore_fault(datastore: Datastore, local: Iterable[Path] = ()) -> str | None:
    """Why the studies, in a `local` folder or a PACS, cannot be listed."""
    if not all(folder.is_dir() for folder in local):
        return "the folder of the studies is gone"
    try:
        return datastore.status().get("error")
    except (VQSegError, OSError) as error:
        return getattr(error, "strerror", None) or str(error)


def model_fault(model: LiveModel) -> str | None:
    """Why no model that was published can serve; before the first training none is expected.

    It loads the model where nobody has asked for a mask yet: who is not ready is sent no clients that would.
    """
    if model.store.live() is None:
        return None
    try:
        model.predictor()
    except VQSegError as error:
        return str(error)
    return None


def disk_fault(folders: Iterable[Path], least: float = _LEAST_FREE_BYTES) -> str | None:
    """Where less than `least` bytes are free, or nothing is known of it."""
    for folder in folders:
        # The folder of a training appears with the first one.
        place = next((one for one in (folder, *folder.parents) if one.exists()), folder)
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            return f"{folder.name}: {error.strerror}"
        if free < least:
            return f"{folder.name}: {free / 1e6:.0f} MB are free on its disk, at least {least / 1e6:.0f} are needed"
    return None
