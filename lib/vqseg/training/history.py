"""What a training has written into `<run>/events.jsonl`, read again: each step once, however often it was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqseg.training.status import EVENTS_FILE

__all__ = ["CODEBOOK_FIGURES", "History", "read_history", "scalars_of"]

# Of a "validation" event, those that `Network.codebook_report` gives.
CODEBOOK_FIGURES = ("codes_in_use", "replacement_codes", "kl_from_uniform")


@dataclass(frozen=True)
class History:
    """Events of one training in the order of their steps: `points` have losses and learning rate."""

    points: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]


def read_history(run: Path) -> History:
    """The last training in `run`. A step that was done again after a kill stands there as it was done last."""
    kinds: dict[str, dict[int, Mapping[str, Any]]] = {"step": {}, "validation": {}}
    for event in _events(run / EVENTS_FILE):
        kind = event.get("event")
        if kind == "start":
            kinds = {name: {} for name in kinds}
        elif kind == "resume":
            kinds = {name: {s: old for s, old in rows.items() if s <= event["step"]} for name, rows in kinds.items()}
        elif kind in kinds:
            kinds[kind][event["step"]] = event
    return History(list(kinds["step"].values()), list(kinds["validation"].values()))


def scalars_of(point: Mapping[str, Any], validation: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Figures of a step by name, as trackers show them: of its "step" event and, if it has one, its validation."""
    scalars = {f"loss/{name}": value for name, value in point["losses"].items()}
    scalars["learning_rate"] = point["learning_rate"]
    if validation is not None:
        scalars["validation/dice"] = validation["dice"]
        found = {name: dice for name, dice in validation["per_class"].items() if dice is not None}
        scalars |= {f"validation/dice_of/{name}": dice for name, dice in found.items()}
        scalars |= {f"codebook/{name}": validation[name] for name in CODEBOOK_FIGURES if name in validation}
    return scalars


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a line that a killed process left half-written
