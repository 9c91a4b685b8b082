"""The trainings of a run and how they went, from the events that they left in `<run>/events.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vqseg.training.status import EVENTS_FILE

__all__ = ["TrainingRecord", "publishing_validation", "read_trainings"]


@dataclass(frozen=True)
class TrainingRecord:
    """One training, be it continued several times.

    `started` in seconds since 1970; `name` is that which its trackers know, none of an older version. `validations` in
    the order of their steps, each with `step`, `time`, `losses`, the fields of a `ValidationScore`, the version
    `published` if there is one, the `reason` why or why not, and the figures of the codebook. `report` is the name of
    its last report, which may be gone by now.
    """

    started: float
    method: str | None = None
    name: str | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)
    report: str | None = None


def read_trainings(run: Path) -> list[TrainingRecord]:
    """The trainings of a run, oldest first; none where nothing was trained. A line that is damaged is passed over."""
    trainings: list[TrainingRecord] = []
    for event in _events(run / EVENTS_FILE):
        kind = event.pop("event")
        if kind == "start":
            trainings.append(TrainingRecord(event["time"], event.get("method"), event.get("training")))
        elif kind in ("resume", "validation") and trainings and "step" in event:
            # A training that was killed goes on from its last checkpoint and validates some steps again.
            lost = event["step"] + (kind == "resume")
            kept = [one for one in trainings[-1].validations if one["step"] < lost]
            trainings[-1].validations[:] = [*kept, event] if kind == "validation" else kept
        elif kind == "report" and trainings:
            trainings[-1] = replace(trainings[-1], report=event.get("name"))
    return trainings


def publishing_validation(run: Path, version: str) -> dict[str, Any] | None:
    """The validation whose model was published as `version`, or none.

    It may be of no training any more, for one that goes on from an earlier checkpoint validates its step again. Where
    the models of a run were removed their names are given anew, so the last one counts.
    """
    found = None
    for event in _events(run / EVENTS_FILE):
        if event["event"] == "validation" and event.get("published") == version:
            found = event
    return found


def _events(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off when its writer was killed
        if isinstance(event, dict) and {"event", "time"} <= event.keys() and isinstance(event.get("step", 0), int):
            yield event
