"""`GET /vqseg/reports/{name}`: the report of a training, as a page."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from monailabel.interfaces.utils.app import app_instance

from vqseg.report.listing import REPORTS, list_reports
from vqseg.report.page import write_report
from vqseg.training.status import training_process

from .errors_over_rest import UnknownError
from .request_rules import AsUser

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/vqseg/reports", tags=["Train"])
_SECONDS_TO_END = 30
# A report holds all that it shows. It comes out of names and texts of others, so nothing in it may run or be sent.
_RULES = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; sandbox"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-cache",
}


@router.get("/{name}", summary="The report of a training", response_class=HTMLResponse)
def show_report(name: str, user: AsUser) -> HTMLResponse:
    """The names are in the answer of `/vqseg/training`; the newest twenty are kept."""
    folder, known = app_instance().run, list_reports(app_instance().run)
    if name not in known:
        raise UnknownError("report", name, known)
    try:
        content = (folder / REPORTS / name).read_bytes()
    except FileNotFoundError:  # a newer one has just taken its place
        raise UnknownError("report", name, known) from None
    return HTMLResponse(content, headers=_RULES)


def report_when_ended(run: Path) -> None:
    """Report a training that is being killed, as far as it got."""
    end = time.monotonic() + _SECONDS_TO_END
    while training_process(run) and time.monotonic() < end:
        time.sleep(0.1)
    try:
        write_report(run)
    except Exception as error:
        logger.warning("no report of the training that was stopped: %s", error)
