"""The report of a real training: what stands in it is what the run's own files say, and nothing in it can act."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import TINY_2D, tiny_config, write_studies

from vqseg.data.studies import Study
from vqseg.errors import DataError
from vqseg.report import page as page_module
from vqseg.report.cases import read_cases
from vqseg.report.listing import REPORTS, list_reports
from vqseg.report.page import write_report
from vqseg.store import ModelStore
from vqseg.training import run as run_module
from vqseg.training.history import read_trainings
from vqseg.training.points import read_points
from vqseg.training.run import train
from vqseg.training.status import StatusFile, read_status

HOSTILE = "<script>alert(1)</script>\"' onload=x & $x_{1}$ {{ 7*7 }}"
_ADDRESSES = ("src", "href", "xlink:href", "action", "data", "srcset", "poster", "background", "formaction")
_EMPTY = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements, text by element, and rows of tables by caption of a well-formed page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._caption, self._rows = "", []
        self.feed(text)
        self.close()
        assert self._open == [], "an element was not closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self._open.append(tag)
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption.partition(",")[0]] = self._rows

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, caption: str) -> dict[str, list[str]]:
        (found,) = (rows for name, rows in self.tables.items() if name.startswith(caption))
        return {row[0]: row[1:] for row in found[1:]}


def report_of(run: Path) -> str:
    return (run / REPORTS / list_reports(run)[0]).read_text(encoding="utf-8")


def state_of_run(run: Path) -> dict[str, Any]:
    status = read_status(run)
    assert status is not None
    return status


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return write_studies(tmp_path_factory.mktemp("studies"), 8, 7)


@pytest.fixture(scope="module")
def trained(studies: Sequence[Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies of another split file are validated on."""
    run = tmp_path_factory.mktemp("run")
    result = train(studies[3:], run, tiny_config({"tracking.every": 1}), device="cpu", validation=studies[:3])
    assert result.report == list_reports(run)[0] == state_of_run(run)["report"]
    return run


def test_it_is_one_file_that_asks_nobody_and_runs_nothing(trained: Path) -> None:
    text = report_of(trained)
    page = Page(text)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", re.sub(r'"data:image/png;base64,[^"]*"', "", text))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in set(attributes) & set(_ADDRESSES):
            assert (attributes[name] or "").startswith(("data:image/png;base64,", "#")), (tag, name)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_its_numbers_are_those_of_status_manifest_and_events(trained: Path) -> None:
    page, status = Page(report_of(trained)), state_of_run(trained)
    live = ModelStore(trained / "models").live()
    assert live is not None
    validation = live.manifest["validation"]
    cases = page.rows("Dice by study")
    dice = validation["per_study"]
    assert list(cases) == sorted(dice, key=lambda study: (dice[study], study))
    for study, (mean, *by_structure) in cases.items():
        assert mean == f"{dice[study]:.3f}"
        expected = validation["per_study_and_class"][study].values()
        assert by_structure == ["-" if value is None else f"{value:.3f}" for value in expected]
    (training,) = read_trainings(trained)
    table = page.rows("Dice on locked studies")
    assert {step: row[0] for step, row in table.items()} == {
        str(one["step"]): f"{one['dice']:.3f}" for one in training.validations
    }
    assert f"version {live.name}" in page.text
    assert f"{validation['dice']:.3f}" in page.text
    assert f"{status['step']} of {status['total_steps']}" in page.text
    assert live.manifest["data"]["sha256"] in page.text
    # The fixture has one study without a mask.
    assert "Trained on 4 labelled and 1 unlabelled studies." in page.text
    settings = page.rows("As they were used")
    assert settings["train.steps"] == ["6"]
    assert settings["software.torch"] == [live.manifest["software"]["torch"]]
    reason = next(one["reason"] for one in training.validations if one["published"] == live.name)
    assert reason in page.text


def test_it_shows_the_worst_and_the_best_cases_with_words_for_who_cannot_see_them(trained: Path) -> None:
    page = Page(report_of(trained))
    validation = ModelStore(trained / "models").versions()[-1].manifest["validation"]["per_study"]
    expected = sorted(validation, key=lambda study: (validation[study], study))
    pictures = page.all("img")
    shown = [re.search(r"of study (\w+):", picture["alt"] or "") for picture in pictures]
    assert [found and found[1] for found in shown] == [*expected[:2], expected[2]]
    drawings = [attributes for tag, attributes in page.elements if attributes.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == 8
    assert all(drawing["aria-label"] for drawing in drawings)
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert page.all("html")[0]["lang"] == "en"
    assert all("scope" in cell for cell in page.all("th"))


def test_the_codebook_is_that_of_the_model_shown(trained: Path) -> None:
    (training,) = read_trainings(trained)
    shown = [one for one in training.validations if one["published"]][-1]
    cases = read_cases(trained, training.name or "", shown["step"])
    assert cases is not None
    assert cases.usage is not None
    assert (cases.usage > 0).sum() == shown["codes_in_use"]
    assert f"{shown['codes_in_use']} of 32 codes were chosen" in Page(report_of(trained)).text


@pytest.mark.parametrize("overrides", [TINY_2D, {"model.quantized": False}, {"tracking.to": "none"}])
def test_every_kind_of_network_is_reported(overrides: dict[str, Any], studies: Sequence[Study], tmp_path: Path) -> None:
    method = "vqseg" if overrides.get("model.quantized", True) else "supervised"
    train(studies, tmp_path, tiny_config(overrides), device="cpu", method=method)
    text = Page(report_of(tmp_path)).text
    assert ("codes were chosen" in text) == (method == "vqseg")
    assert "never trained on" in text
    assert not [line for line in (tmp_path / "events.jsonl").read_text().splitlines() if "report_failed" in line]


def test_names_of_studies_structures_and_reasons_are_text_whatever_they_hold(
    studies: Sequence[Study], tmp_path: Path
) -> None:
    named = [replace(study, id=f"{study.id} {HOSTILE}") for study in studies]
    config = tiny_config({"data.labels": {HOSTILE: 1, "_hidden $a": 2}})
    train(named, tmp_path, config, device="cpu", left_out={f"x{HOSTILE}": f"because {HOSTILE}"})
    page = Page(report_of(tmp_path))
    assert not page.all("script")
    assert not [name for _, attributes in page.elements for name in attributes if name == "onload"]
    assert f"x{HOSTILE}: because {HOSTILE}" in page.text
    assert HOSTILE in page.tables[next(iter(page.tables))][0]
    assert all(HOSTILE in study for study in page.rows("Dice by study"))


def test_a_model_scored_on_what_it_was_trained_on_is_not_called_validated(
    studies: Sequence[Study], tmp_path: Path
) -> None:
    train(studies[:2], tmp_path, tiny_config(), device="cpu")
    text = Page(report_of(tmp_path)).text
    assert "No study was locked for validation" in text
    assert "Dice on studies it trained on" in text
    assert "Validation Dice0" not in text
    assert "Validated on" not in text
    assert "2 labelled and 0 unlabelled studies, the labelled ones without their masks as well" in text
    empty = tmp_path / "no validation studies in the split file"
    train(studies, empty, tiny_config(), device="cpu", validation=[])
    assert "0 studies" not in (text := Page(report_of(empty)).text)
    assert "No study was locked for validation" in text


def test_a_training_that_publishes_nothing_says_why(trained: Path, studies: Sequence[Study], tmp_path: Path) -> None:
    train(studies[3:], tmp_path, tiny_config({"train.steps": 60}), device="cpu", validation=studies[:3])
    best = ModelStore(tmp_path / "models").live()
    train(studies[3:], tmp_path, tiny_config({"train.steps": 1}), device="cpu", validation=studies[:3])
    live, (_, second) = ModelStore(tmp_path / "models").live(), read_trainings(tmp_path)
    assert live is not None
    assert best is not None
    assert live.name == best.name
    text = Page(report_of(tmp_path)).text
    assert "Publishednothing" in re.sub(r"\s", "", text)
    assert second.validations[-1]["reason"] in text
    assert second.report != read_trainings(tmp_path)[0].report


def test_a_training_that_is_continued_has_whole_curves_and_a_report_of_each_end(
    studies: Sequence[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, config = run_module._Run._after_step, tiny_config({"tracking.every": 1})

    def stop(self: Any, done: Any) -> None:
        original(self, done)
        if done.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "_after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(studies, tmp_path, config, device="cpu")
    first = state_of_run(tmp_path)
    assert first["state"] == "stopped"
    assert "Trainingstopped" in re.sub(r"\s", "", Page(report_of(tmp_path)).text)
    train(studies, tmp_path, config, device="cpu", resume=True)
    assert list_reports(tmp_path) == [state_of_run(tmp_path)["report"], first["report"]]
    assert [point["step"] for point in read_points(tmp_path)] == [1, 2, 3, 4, 5, 6]
    page = Page(report_of(tmp_path))
    assert list(page.rows("Dice on locked studies")) == ["3", "6"]
    assert "Trainingdone" in re.sub(r"\s", "", page.text)
    (training,) = read_trainings(tmp_path)
    assert training.report == list_reports(tmp_path)[0]


def test_a_killed_training_can_be_reported_by_another_process(
    studies: Sequence[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "read_content", lambda run: None)
    train(studies, tmp_path, tiny_config(), device="cpu")
    monkeypatch.undo()
    assert list_reports(tmp_path) == []
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    gone = {**status, "state": "running", "pid": 2**22 + 1}
    (tmp_path / "status.json").write_text(json.dumps(gone), encoding="utf-8")
    assert write_report(tmp_path) == list_reports(tmp_path)[0]
    assert "Trainingstopped" in re.sub(r"\s", "", Page(report_of(tmp_path)).text)


def test_what_another_training_left_is_not_told_of_one_that_did_nothing(
    studies: Sequence[Study], tmp_path: Path
) -> None:
    train(studies, tmp_path, tiny_config(), device="cpu")
    assert len(list_reports(tmp_path)) == 1
    with pytest.raises(DataError):
        train([], tmp_path, tiny_config(), device="cpu", validation=[])
    assert len(list_reports(tmp_path)) == 1
    assert "report" not in state_of_run(tmp_path)
    StatusFile(tmp_path)
    assert write_report(tmp_path) is None


def test_a_report_that_cannot_be_written_takes_nothing_from_the_training(
    studies: Sequence[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / REPORTS).write_text("a file where a folder should be", encoding="utf-8")
    result = train(studies, tmp_path, tiny_config(), device="cpu")
    status = state_of_run(tmp_path)
    assert (status["state"], result.report) == ("done", None)
    assert "no report could be written" in status["message"]
    assert result.live is not None
    assert any('"report_failed"' in line for line in (tmp_path / "events.jsonl").read_text().splitlines())

    def broken(*unused: Any, **also_unused: Any) -> str:
        raise ValueError("no drawing today")

    (tmp_path / REPORTS).unlink()
    monkeypatch.setattr("vqseg.report.content.draw_curves", broken)
    train(studies, tmp_path, tiny_config({"train.seed": 1}), device="cpu")
    assert "no drawing today" in state_of_run(tmp_path)["message"]
    assert list_reports(tmp_path) == []


def test_damaged_or_missing_pictures_are_said(studies: Sequence[Study], tmp_path: Path) -> None:
    train(studies, tmp_path, tiny_config(), device="cpu")
    file = tmp_path / "last_training" / "cases.npz"
    for content in (b"", b"damaged", file.read_bytes()[:-100]):
        file.write_bytes(content)
        write_report(tmp_path)
        page = Page(report_of(tmp_path))
        assert "Their pictures were not kept" in page.text
        assert not page.all("img")


def test_the_newest_are_kept_and_other_files_left_alone(
    studies: Sequence[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page_module._KEPT == 20
    monkeypatch.setattr(page_module, "_KEPT", 3)  # of twenty each takes a second
    train(studies, tmp_path, tiny_config(), device="cpu")
    first = list_reports(tmp_path)[0]
    (tmp_path / REPORTS / "notes.html").write_text("mine", encoding="utf-8")
    made = [write_report(tmp_path) for _ in range(4)]
    assert list_reports(tmp_path) == made[::-1][:3]
    assert first not in list_reports(tmp_path)
    assert (tmp_path / REPORTS / "notes.html").exists()
    # After the clock was set back the report just written is not the one that goes.
    for name in list_reports(tmp_path):
        (tmp_path / REPORTS / name).rename(tmp_path / REPORTS / f"29{name[2:]}")
    newest = write_report(tmp_path)
    assert newest in list_reports(tmp_path)
    assert len(list_reports(tmp_path)) == 3


def test_usage_counts_are_not_changed_by_a_report(trained: Path) -> None:
    before = read_trainings(trained)[0].validations
    assert write_report(trained)
    assert read_trainings(trained)[0].validations == before
    assert np.isfinite([one["dice"] for one in before]).all()
