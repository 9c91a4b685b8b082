"""The trainings of a run and how they went, from the events that they left in `<run>/events.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["TrainingRecord", "read_trainings"]

_OF_A_VALIDATION = ("step", "time", "dice", "per_class", "losses", "published")
_OF_THE_CODEBOOK = ("codes_in_use", "replacement_codes", "kl_from_uniform")


@dataclass(frozen=True)
class TrainingRecord:
    """One training, be it continued several times. `started` in seconds since 1970; `validations` in the order of their
    steps, each with `step`, `time`, `dice`, `per_class`, `losses`, the version `published` if there is one, and the
    figures of the codebook."""

    started: float
    method: str | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)


def read_trainings(run: Path) -> list[TrainingRecord]:
    """The trainings of a run, oldest first; none where nothing was trained. A line that is damaged is passed over."""
    trainings: list[TrainingRecord] = []
    for event in _events(run / "events.jsonl"):
        if event["event"] == "start":
            trainings.append(TrainingRecord(event["time"], event.get("method")))
        elif event["event"] == "validation" and trainings:
            known = {key: event[key] for key in (*_OF_A_VALIDATION, *_OF_THE_CODEBOOK) if key in event}
            # A training that was killed goes on from its last checkpoint and validates some steps again.
            kept = [one for one in trainings[-1].validations if one["step"] < event["step"]]
            trainings[-1].validations[:] = [*kept, known]
    return trainings


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
