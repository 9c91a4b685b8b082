"""What stands in a report: all of it is read from the run's folder, also of a training whose process is gone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqseg.report.cases import Case, CaseFile, read_cases
from vqseg.report.colours import colour_of, dash_of
from vqseg.report.curves import Curve, draw_curves, draw_usage
from vqseg.report.facts import Facts, read_facts
from vqseg.report.pictures import plane_name, png_of, shown_part
from vqseg.training.history import TrainingRecord, read_trainings
from vqseg.training.manifest import flat_settings
from vqseg.training.points import read_points
from vqseg.training.status import read_status

__all__ = ["read_content"]

Row = dict[str, Any]
# How a training ended, for who reads of it. "running" is what one says of itself that is about to end.
_ENDS = {"done": "done", "stopped": "stopped", "interrupted": "stopped", "failed": "failed", "running": "running"}


@dataclass(frozen=True)
class _Training:
    """The last training of a run; `shown` is the validation whose cases are shown, if there was any."""

    status: Mapping[str, Any]
    facts: Facts
    record: TrainingRecord
    points: Sequence[Mapping[str, Any]]
    shown: Mapping[str, Any] | None
    cases: CaseFile | None

    @property
    def labels(self) -> dict[str, int]:
        return self.facts.manifest["config"]["data"]["labels"]


def read_content(run: Path) -> dict[str, Any] | None:
    """Values for the page's template, of the last training in `run`; none where it has done nothing yet."""
    training = _read(run)
    if training is None:
        return None
    shown, manifest = training.shown, training.facts.manifest
    data = manifest["data"]
    return {
        "written": _utc(time.time()),
        "begun": _utc(training.record.started),
        "state": _ENDS.get(training.status["state"], training.status["state"]),
        "message": training.status.get("message", ""),
        "method": manifest["method"],
        "steps": _last_step(training),
        "total_steps": manifest["config"]["train"]["steps"],
        "locked": training.facts.locked,
        "validated_on": training.facts.validated_on,
        "structures": list(training.labels),
        "structure_legend": _legend(training.labels),
        "shown": shown,
        "per_study": _per_study(shown) if shown else [],
        "validations": training.record.validations,
        "published": [one for one in training.record.validations if one.get("published")],
        "charts": _charts(training),
        "usage": _usage(training.cases),
        "worst": _cases(training.cases.worst if training.cases else [], training.labels),
        "best": _cases(training.cases.best if training.cases else [], training.labels),
        "sha256": data["sha256"],
        "labelled": data["labelled"],
        "unlabelled": training.facts.unlabelled,
        "used_without_masks": data["unlabelled"] > 0 and not training.facts.unlabelled,
        "left_out": training.status.get("left_out", []),
        "settings": flat_settings(manifest),
    }


def _read(run: Path) -> _Training | None:
    status, facts, trainings = read_status(run), read_facts(run), read_trainings(run)
    # What was left by another training is not told of this one.
    if not (status and facts and trainings) or not status.get("training") == facts.training == trainings[-1].name:
        return None
    record, points = trainings[-1], read_points(run)
    if not (record.validations or points):
        return None
    shown = _shown(record.validations)
    cases = read_cases(run, facts.training, shown["step"]) if shown else None
    return _Training(status, facts, record, points, shown, cases)


def _shown(validations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The one whose model was published last; where none was, the best."""
    published = [one for one in validations if one.get("published")]
    return published[-1] if published else max(validations, key=lambda one: one["dice"], default=None)


def _last_step(training: _Training) -> int:
    known = [*training.points, *training.record.validations]
    return max([training.status.get("step") or 0, *(one["step"] for one in known)])


def _per_study(shown: Mapping[str, Any]) -> list[Row]:
    by_structure = shown.get("per_study_and_class", {})
    rows = [
        {"study": study, "dice": dice, "by": by_structure.get(study, {})} for study, dice in shown["per_study"].items()
    ]
    return sorted(rows, key=lambda row: (row["dice"], row["study"]))


def _charts(training: _Training) -> list[Row]:
    validations = training.record.validations
    steps = [one["step"] for one in validations]
    losses: dict[str, Curve] = {}
    for name in dict.fromkeys(name for point in training.points for name in point["losses"]):
        found = [point for point in training.points if name in point["losses"]]
        losses[name.replace("_", " ")] = ([one["step"] for one in found], [one["losses"][name] for one in found])
    rates = ([one["step"] for one in training.points], [one["learning_rate"] for one in training.points])
    # The structures first, as in the pictures, so that each has one colour.
    scores: dict[str, Curve] = {}
    for name in training.labels:
        found = [one for one in validations if one["per_class"].get(name) is not None]
        scores[name] = ([one["step"] for one in found], [one["per_class"][name] for one in found])
    scores["mean of the structures"] = (steps, [one["dice"] for one in validations])
    charts = [
        _chart("Validation Dice", scores, "Dice", most=1),
        _chart("Losses, weighted", losses, "loss"),
        _chart("Learning rate", {"learning rate": rates}, "learning rate"),
    ]
    of_codebook = {
        "codes_in_use": ("Codes that were ever chosen in this training", "codes in use"),
        "codes_as_if_alike": ("Codes that would be as many, were all chosen alike", "codes as if alike"),
        "replacement_codes": ("Codes that QPM replaces a code by, effectively", "replacement codes"),
        "kl_from_uniform": ("How far QPM's choice is from a uniform one", "KL divergence (nats)"),
    }
    for key, (title, y) in of_codebook.items():
        found = [one for one in validations if key in one]
        charts.append(_chart(title, {y: ([one["step"] for one in found], [one[key] for one in found])}, y))
    return [chart for chart in charts if chart]


def _chart(title: str, curves: Mapping[str, Curve], y: str, most: float | None = None) -> Row:
    """Nothing where there is no point."""
    known = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not known:
        return {}
    legend = _legend(known) if len(known) > 1 else []
    ends = {name: values[-1] for name, (_, values) in known.items()}
    return {"title": title, "svg": draw_curves(known, y, most=most), "legend": legend, "ends": ends}


def _legend(names: Mapping[str, Any]) -> list[Row]:
    return [{"name": name, "colour": colour_of(n), "dash": dash_of(n)} for n, name in enumerate(names)]


def _usage(cases: CaseFile | None) -> Row | None:
    if cases is None or cases.usage is None or not cases.usage.any():
        return None
    used = int((cases.usage > 0).sum())
    return {"svg": draw_usage(cases.usage), "used": used, "codes": len(cases.usage), "step": cases.step}


def _cases(cases: Sequence[Case], labels: Mapping[str, int]) -> list[Row]:
    return [_pictured(case, labels) for case in cases]


def _pictured(case: Case, labels: Mapping[str, int]) -> Row:
    part = shown_part(case)
    shape = [len(range(*one.indices(size))) for one, size in zip(part, case.image.shape, strict=True)]
    return {
        "study": case.study,
        "dice": case.dice,
        "plane": plane_name(case),
        "number": case.index + 1,
        "depth": case.depth,
        "millimetres": [round(size * mm) for size, mm in zip(shape, case.spacing, strict=True)],
        "png": png_of(case, labels),
    }


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"
