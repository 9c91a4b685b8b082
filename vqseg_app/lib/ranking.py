"""`GET /vqseg/ranking`: all studies by one strategy, page by page. It reserves nothing and lets no model work."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.utils.app import app_instance

from vqseg.active.strategies import REVIEWS

from .pacs_datastore import PACSStudies
from .request_rules import AsUser
from .selection import Selector

_NAMED_ABOVE = ("left_out", "unusable_labels")
router = APIRouter(prefix="/vqseg", tags=["ActiveLearning"])


@router.get("/ranking", summary="All studies in the order in which a strategy offers them, with the reasons")
async def show_ranking(
    request: Request,
    user: AsUser,
    strategy: str = "random",
    page: Annotated[int, Query(ge=1)] = 1,
    per_page: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Any:
    app = app_instance()
    return await app.selections.run(request, lambda: app.ranking(strategy, page, per_page))


def ranking_page(
    selector: Selector, name: str, datastore: Datastore, page: int, per_page: int, scoring: dict[str, Any]
) -> dict[str, Any]:
    """One page of a ranking, with what is known of the `scoring` that runs or ran."""
    unusable = scoring.get("unusable_labels" if name in REVIEWS else "left_out", {})
    selection = selector.select(name, datastore, unusable=unusable)
    # By chance nobody looks at the images, so those that are known to be unusable are in the ranking, too.
    seen_by_nobody = {*selection.missing, *selection.ranking.ids} - selection.scored
    left_out = {study: unusable[study] for study in unusable if study in seen_by_nobody} | selection.left_out
    places = [place for place, study in enumerate(selection.ranking.ids) if study not in left_out]
    first = (page - 1) * per_page
    return {
        "strategy": name,
        "strategy_used": selection.strategy,
        "model_version": selection.model_version,
        "total": len(places),
        "page": page,
        "per_page": per_page,
        "pages": -(-len(places) // per_page),
        "scored": len(selection.scored),
        "missing": len(set(selection.missing) - set(left_out)),
        "left_out": left_out,
        "note": selection.note,
        "scoring": {key: value for key, value in scoring.items() if key not in _NAMED_ABOVE},
        "studies": [
            {**(entry := selection.ranking[place]).as_values(rank), "viewer": viewer_address(datastore, entry.id)}
            for rank, place in enumerate(places[first : first + per_page], start=first + 1)
        ],
    }


def viewer_address(datastore: Datastore, image: str) -> str | None:
    """Where the viewer shows an image; none for one that is not in a PACS, without which the viewer shows nothing."""
    if not isinstance(datastore, PACSStudies):
        return None
    info = datastore.get_image_info(image)
    uids = {f"{key}s": info[key] for key in ("StudyInstanceUID", "SeriesInstanceUID")}
    return f"/ohif/monai-label?{urlencode(uids)}"
