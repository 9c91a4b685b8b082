"""`GET /vqseg/codebook`: how the studies use the codes of the live model, as far as they were looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import APIRouter, Request
from monailabel.interfaces.utils.app import app_instance

from vqseg.errors import VQSegError
from vqseg.networks.quantizer import perplexity
from vqseg.training.history import publishing_validation

from .live_model import identity_of
from .request_rules import AsUser
from .sources import SignalsOfImages

router = APIRouter(prefix="/vqseg/codebook", tags=["App"])
_FIGURES = ("replacement_codes", "kl_from_uniform")


@router.get("", summary="How the studies use the codes of the live model")
async def show_codebook(request: Request, user: AsUser) -> Any:
    """`usage` is the share of the tokens of each code, the most used first, over `studies` of the studies; codes that
    none of them uses are left out. `perplexity` is the number of codes that, used alike, would be as many.
    `replacement_codes` is the effective number of codes by which QPM replaced one when the live model was validated,
    `kl_from_uniform` how far its choice was from a uniform one; null where that model was not trained here."""
    app = app_instance()
    return await app.selections.run(request, lambda: describe_codebook(app))


def describe_codebook(app: Any) -> dict[str, Any]:
    version = app.live.version()
    if version is None:
        nothing = {"model_version": None, "codes": 0, "studies": 0, "used": 0, "perplexity": None, "usage": []}
        return nothing | dict.fromkeys(_FIGURES)
    # Not that which is live by now: all figures are of one model.
    source = SignalsOfImages(app.datastore(), app.live, app.cache, app.memory, draws=0)
    model, found = identity_of(version), 0
    counts = np.zeros(version.config.model.codebook_size)
    for study in app.datastore().list_images():
        try:
            signals = source.known(model, study)
        except VQSegError:
            continue  # the ranking names it
        if signals is not None:
            counts[signals.codes] += signals.counts / max(signals.counts.sum(), 1)
            found += 1
    shares = np.sort(counts[counts > 0])[::-1] / max(counts.sum(), 1e-12)
    return {
        "model_version": version.name,
        "codes": len(counts),
        "studies": found,
        "used": len(shares),
        "perplexity": perplexity(torch.from_numpy(counts)) if found else None,
        "usage": [round(float(share), 8) for share in shares],
        **_figures(app.run, version.name),
    }


def _figures(run: Path, version: str) -> dict[str, Any]:
    validation = publishing_validation(run, version) or {}
    return {name: validation.get(name) for name in _FIGURES}
