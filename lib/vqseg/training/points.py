"""Losses and learning rate of the training that a run did last, point for point, in `<run>/last_training/points.jsonl`.

They are apart from the events, which are few and are kept of all trainings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["CODEBOOK_FIGURES", "POINTS_FILE", "Points", "read_points", "scalars_of"]

# Of a "validation" event, those that `Network.codebook_report` gives.
CODEBOOK_FIGURES = ("codes_in_use", "codes_as_if_alike", "replacement_codes", "kl_from_uniform")
POINTS_FILE = Path("last_training") / "points.jsonl"


class Points:
    """The file of a training that begins, or goes on behind `done` steps; later points, which a kill made worthless,
    count no longer."""

    def __init__(self, run: Path, done: int) -> None:
        self._path = run / POINTS_FILE
        self._path.parent.mkdir(exist_ok=True)
        if not done:
            self._path.unlink(missing_ok=True)
        self._append({"behind": done})

    def add(self, step: int, losses: Mapping[str, float], learning_rate: float) -> dict[str, Any]:
        """Append a point and return it."""
        point = {"step": step, "losses": dict(losses), "learning_rate": learning_rate}
        self._append(point)
        return point

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            # Behind a line that was cut off, one begins anew; empty ones are passed over.
            file.write(f"\n{json.dumps(line)}")


def read_points(run: Path) -> list[dict[str, Any]]:
    """Points with `step`, `losses` and `learning_rate` in the order of their steps, each once; none without a file."""
    points: list[dict[str, Any]] = []
    try:
        lines = (run / POINTS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # empty, or cut off when its writer was killed
        if "behind" in line:
            points = [point for point in points if point["step"] <= line["behind"]]
        else:
            points.append(line)
    return points


def scalars_of(point: Mapping[str, Any], validation: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Figures of a step by name, as trackers show them: of its point and, if it has one, its "validation" event."""
    scalars = {f"loss/{name}": value for name, value in point["losses"].items()}
    scalars["learning_rate"] = point["learning_rate"]
    if validation is not None:
        scalars["validation/dice"] = validation["dice"]
        found = {name: dice for name, dice in validation["per_class"].items() if dice is not None}
        scalars |= {f"validation/dice_of/{name}": dice for name, dice in found.items()}
        scalars |= {f"codebook/{name}": validation[name] for name in CODEBOOK_FIGURES if name in validation}
    return scalars
