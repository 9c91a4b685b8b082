"""`GET /vqseg/training`: the training that runs, and the curves and reports of those before it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
from fastapi import APIRouter
from monailabel.interfaces.utils.app import app_instance

from vqseg.report.listing import list_reports
from vqseg.training.history import TrainingRecord, read_trainings
from vqseg.training.points import CODEBOOK_FIGURES, POINTS_FILE, read_points
from vqseg.training.status import EVENTS_FILE, training_process

from .request_rules import AsUser

router = APIRouter(prefix="/vqseg/training", tags=["Train"])
T = TypeVar("T")
_SHOWN_TRAININGS = 20
# More than the pixels of a chart would show.
_SHOWN_POINTS = 300
# What each study scored is in the reports, and would make the answer long.
_SHOWN = ("step", "time", "dice", "per_class", "losses", "published", "reason", *CODEBOOK_FIGURES)


@router.get("", summary="The training that runs, or the last one, and the curves of the last twenty")
def show_training(user: AsUser) -> dict[str, Any]:
    """`status.continue_with` are the options with which `POST /train/vqseg` continues a stopped training, null where it
    would begin anew. `reports` are names for `/vqseg/reports/{name}`, the newest first; each training has that of its
    own, or null. `points` are losses between the validations, at most 300, which are kept of the newest training
    alone."""
    app = app_instance()
    reports = list_reports(app.run)
    trainings = told_trainings(app.run)
    with_reports = [{**one, "report": one["report"] if one["report"] in reports else None} for one in trainings]
    return {**training_now(app), "trainings": with_reports, "reports": reports}


def training_now(app: Any) -> dict[str, Any]:
    """`status` as in `train_stats` of `/info/`; `memory_bytes` of the training's process, none when none runs."""
    (trainer,) = app._trainers.values()
    return {"status": trainer.stats(), "memory_bytes": _memory(app.run)}


def events_state(run: Path) -> tuple[int, int]:
    """Changes with whatever a training writes of its course."""
    return _state_of(run / EVENTS_FILE)


def points_state(run: Path) -> tuple[int, int]:
    """Changes with every point of the losses."""
    return _state_of(run / POINTS_FILE)


def _state_of(file: Path) -> tuple[int, int]:
    try:
        state = file.stat()
    except FileNotFoundError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def told_trainings(run: Path) -> list[dict[str, Any]]:
    """Curves of the last twenty trainings, oldest first."""
    trainings = _read(run, events_state(run))
    points = _points(run, points_state(run))
    return [{**one, "points": points if one is trainings[-1] else []} for one in trainings]


@functools.lru_cache(maxsize=1)
def _read(run: Path, state: tuple[int, int]) -> list[dict[str, Any]]:
    return [_shown(training) for training in read_trainings(run)[-_SHOWN_TRAININGS:]]


def _shown(training: TrainingRecord) -> dict[str, Any]:
    validations = [{key: one[key] for key in _SHOWN if key in one} for one in training.validations]
    own = {"started": training.started, "method": training.method, "report": training.report}
    return {**own, "validations": validations}


@functools.lru_cache(maxsize=1)
def _points(run: Path, state: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"step": point["step"], "losses": point["losses"]} for point in thinned(read_points(run), _SHOWN_POINTS)]


def thinned(points: Sequence[T], most: int) -> list[T]:
    """At most so many of the points, at even distances, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)]


def _memory(run: Path) -> int | None:
    process = training_process(run)
    try:
        return process.memory_info().rss if process else None
    except psutil.Error:
        return None
