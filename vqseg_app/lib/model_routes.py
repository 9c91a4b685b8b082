"""The versions of the model over REST: what there is, what sets two apart, and another one live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from monailabel.interfaces.utils.app import app_instance

from vqseg.store import ModelVersion

from .request_rules import AsAdmin, AsUser

router = APIRouter(prefix="/vqseg/models", tags=["Model"])


@router.get("", summary="Every version, the newest first, and which one answers")
def list_versions(user: AsUser) -> dict[str, Any]:
    return app_instance().model_versions.overview()


@router.get("/{version}", summary="One version: its scores by study, settings and software")
def show_version(version: str, user: AsUser) -> dict[str, Any]:
    return app_instance().model_versions.details(version)


@router.get("/{version}/compare/{other}", summary="What two versions differ in")
def compare_versions(version: str, other: str, user: AsUser) -> dict[str, Any]:
    return app_instance().model_versions.comparison(version, other)


@router.post("/rollback", summary="Make the version live that was so before")
def roll_back(request: Request, user: AsAdmin) -> dict[str, Any]:
    return _change(request, app_instance().live.rollback)


@router.post("/{version}/live", summary="Make a version live")
def make_live(request: Request, version: str, user: AsAdmin) -> dict[str, Any]:
    return _change(request, lambda: app_instance().live.make_live(version))


def _change(request: Request, change: Callable[[], ModelVersion]) -> dict[str, Any]:
    """`was` is the version that answered before, null when none did."""
    was = app_instance().live.version()
    live = change()
    request.state.version = live.name  # for the audit log
    return {"live": live.name, "was": was and was.name}
