"""OHIF out of the monailabel package with our additions (`apps/ohif/`), in front of MONAI Label's own route.

Reasons (monailabel 0.8.5): the viewer cannot submit a label, draw or choose a strategy; files in its folders, such as
`/ohif/assets/...`, are answered with its start page. The package's files stay as they are: only the answer to
`app-config.js` gets our start script behind it, which loads the rest from `/ohif/vqseg/`.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import ohif

from .errors_over_rest import UnknownError
from .files_sent import FRESH, files_below
from .request_rules import AsUser

router = APIRouter(prefix="/ohif", include_in_schema=False)

STOCK = Path(ohif.__file__).parent / "static" / "ohif"
OWN = Path(__file__).resolve().parents[2] / "apps" / "ohif"
SETTINGS, START_PAGE, START_SCRIPT = "app-config.js", "index.html", "start.js"


@router.get(f"/{SETTINGS}")
def viewer_settings(user: AsUser) -> Response:
    script = "\n".join(file.read_text(encoding="utf-8") for file in (STOCK / SETTINGS, OWN / START_SCRIPT))
    return Response(script, media_type="text/javascript", headers=FRESH)


@router.get("/vqseg/{name}")
def own_file(name: str, user: AsUser) -> FileResponse:
    files = files_below(OWN)
    if name not in files:
        raise UnknownError("file of the viewer", name, files)
    return FileResponse(files[name], headers=FRESH)


@router.get("/{path:path}")
def viewer_file(path: str, user: AsUser) -> FileResponse:
    """A file of the viewer; any other path is a page inside it, and its start page knows which."""
    return FileResponse(files_below(STOCK).get(path, STOCK / START_PAGE))
