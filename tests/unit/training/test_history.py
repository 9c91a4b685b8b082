"""The trainings of a run are told from its events, whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqseg.training.history import publishing_validation, read_trainings


def write(run: Path, *events: dict[str, Any], tail: str = "") -> None:
    lines = [json.dumps({"time": 100.0 + number, **event}) for number, event in enumerate(events)]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n" + tail, encoding="utf-8")


def validation(step: int, dice: float) -> dict[str, Any]:
    return {"event": "validation", "step": step, "dice": dice, "per_class": {"lung": dice}, "per_study": {"a": dice}}


def test_nothing_was_trained(tmp_path: Path) -> None:
    assert read_trainings(tmp_path) == []


def test_a_training_that_was_killed_is_one_and_each_step_counts_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"event": "start", "step": 0, "method": "vqseg"},
        validation(10, 0.1),
        validation(20, 0.2),
        {"event": "resume", "step": 10},
        {"event": "left_out", "id": "a"},
        validation(20, 0.25),
        validation(30, 0.3),
        {"event": "start", "step": 0, "method": "cutmix"},
        validation(10, 0.4),
        tail='{"event": "validation", "st',
    )
    first, second = read_trainings(tmp_path)
    assert (first.method, second.method) == ("vqseg", "cutmix")
    assert [(one["step"], one["dice"]) for one in first.validations] == [(10, 0.1), (20, 0.25), (30, 0.3)]
    assert [one["dice"] for one in second.validations] == [0.4]
    assert first.started == 100.0


def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'[]\n"event"\n\xff\xfe\n{"event": 1}\n{"event": "start", "time": 1.0}\n')
    assert [one.started for one in read_trainings(tmp_path)] == [1.0]


def test_what_is_done_again_counts_no_longer_from_the_moment_on_at_which_it_is_begun_again(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"event": "start", "step": 0},
        validation(10, 0.1),
        validation(20, 0.2),
        {"event": "resume", "step": 10},
    )
    assert [one["step"] for one in read_trainings(tmp_path)[0].validations] == [10]


def test_a_version_keeps_its_validation_though_the_training_went_on_from_before(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"event": "start", "step": 0},
        {**validation(10, 0.1), "published": "0001"},
        {**validation(20, 0.2), "published": "0002"},
        {"event": "resume", "step": 10},
        {**validation(20, 0.25), "published": "0003"},
        {"event": "start", "step": 0},
        {**validation(10, 0.15), "published": None},
    )

    def dice(version: str) -> float | None:
        found = publishing_validation(tmp_path, version)
        return found and found["dice"]

    assert [dice(version) for version in ("0001", "0002", "0003", "0004")] == [0.1, 0.2, 0.25, None]


def test_of_two_versions_of_one_name_the_later_counts(tmp_path: Path) -> None:
    write(tmp_path, {**validation(10, 0.1), "published": "0001"}, {**validation(10, 0.4), "published": "0001"})
    found = publishing_validation(tmp_path, "0001")
    assert found is not None
    assert found["dice"] == 0.4
