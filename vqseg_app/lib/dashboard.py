"""The dashboard at `/vqseg/`: the files of `apps/dashboard/`, and the charting library out of the plotly package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from .errors_over_rest import UnknownError
from .files_sent import FRESH, files_below
from .request_rules import AsUser

router = APIRouter(prefix="/vqseg", include_in_schema=False)

OWN = Path(__file__).resolve().parents[2] / "apps" / "dashboard"
START_PAGE = "index.html"
# The page may ask nobody but this server. Plotly writes styles into its charts.
_RULES = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'self'; "
        "base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def charting_library() -> Path:
    """The library as the package brings it, found without importing the package, which takes a second."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


@router.get("/", summary="The dashboard: a page for a browser")
def start_page(user: AsUser) -> FileResponse:
    return FileResponse(OWN / START_PAGE, headers=FRESH | _RULES)


@router.get("/dashboard/plotly.min.js", summary="The charting library of the dashboard")
def charts(user: AsUser) -> FileResponse:
    return FileResponse(charting_library(), media_type="text/javascript", headers=FRESH)


@router.get("/dashboard/{name}", summary="A script or style of the dashboard")
def own_file(name: str, user: AsUser) -> FileResponse:
    files = files_below(OWN)
    if name not in files:
        raise UnknownError("file of the dashboard", name, files)
    return FileResponse(files[name], headers=FRESH | _RULES)
