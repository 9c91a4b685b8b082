"""`GET /vqseg/training`: the training that runs, and the curves and reports of those before it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter
from monailabel.interfaces.utils.app import app_instance

from vqseg.report.listing import list_reports
from vqseg.training.history import TrainingRecord, read_trainings
from vqseg.training.points import CODEBOOK_FIGURES
from vqseg.training.status import training_process

from .request_rules import AsUser

router = APIRouter(prefix="/vqseg/training", tags=["Train"])
_SHOWN_TRAININGS = 20
# What each study scored is in the reports, and would make the answer long.
_SHOWN = ("step", "time", "dice", "per_class", "losses", "published", "reason", *CODEBOOK_FIGURES)


@router.get("", summary="The training that runs, or the last one, and the curves of the last twenty")
def show_training(user: AsUser) -> dict[str, Any]:
    """`reports` are names for `/vqseg/reports/{name}`, the newest first; each training has that of its own, or null."""
    app = app_instance()
    reports = list_reports(app.run)
    trainings = [{**one, "report": one["report"] if one["report"] in reports else None} for one in _trainings(app.run)]
    return {**training_now(app), "trainings": trainings, "reports": reports}


def training_now(app: Any) -> dict[str, Any]:
    """`status` as in `train_stats` of `/info/`; `memory_bytes` of the training's process, none when none runs."""
    (trainer,) = app._trainers.values()
    return {"status": trainer.stats(), "memory_bytes": _memory(app.run)}


def events_state(run: Path) -> tuple[int, int]:
    """Changes with whatever a training writes of its course."""
    try:
        state = (run / "events.jsonl").stat()
    except FileNotFoundError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _trainings(run: Path) -> list[dict[str, Any]]:
    return _read(run, events_state(run))


@functools.lru_cache(maxsize=1)
def _read(run: Path, state: tuple[int, int]) -> list[dict[str, Any]]:
    return [_shown(training) for training in read_trainings(run)[-_SHOWN_TRAININGS:]]


def _shown(training: TrainingRecord) -> dict[str, Any]:
    validations = [{key: one[key] for key in _SHOWN if key in one} for one in training.validations]
    own = {"started": training.started, "method": training.method, "report": training.report}
    return {**own, "validations": validations}


def _memory(run: Path) -> int | None:
    process = training_process(run)
    try:
        return process.memory_info().rss if process else None
    except psutil.Error:
        return None
