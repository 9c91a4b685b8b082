"""Reports over REST: listed, opened as a page that can do nothing, written also of a training that was stopped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import TINY


def test_a_report_is_listed_and_opened_by_its_name_alone(trained: Any) -> None:
    trained.wait(lambda stats: "report" in stats)  # it comes just behind the end of the training
    answer = trained.get("/vqseg/training").json()
    (name,) = answer["reports"]
    assert answer["trainings"][-1]["report"] == answer["status"]["report"] == name
    page = trained.get(f"/vqseg/reports/{name}")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == (trained.run / "reports" / name).read_text(encoding="utf-8")
    rules = {rule.split()[0]: rule.split()[1:] for rule in page.headers["content-security-policy"].split(";")}
    assert rules["default-src"] == ["'none'"]
    assert rules["sandbox"] == []
    assert "script-src" not in rules
    assert page.headers["x-content-type-options"] == "nosniff"
    assert f"{answer['status']['validation']['dice']:.3f}" in page.text


def test_nothing_else_is_opened(trained: Any) -> None:
    trained.wait(lambda stats: "report" in stats)
    (trained.run / "reports" / "notes.html").write_text("mine", encoding="utf-8")
    for name in ("notes.html", "..%2Fstatus.json", "%2e%2e%2fstatus.json", "20200101T000000.000000Z.html", "%00"):
        refused = trained.get(f"/vqseg/reports/{name}")
        assert refused.status_code == 404, name
        assert "pid" not in refused.text
        assert "mine" not in refused.text


def test_the_dashboard_is_given_what_it_links_to(trained: Any) -> None:
    page, script = trained.get("/vqseg/").text, trained.get("/vqseg/dashboard/curves.js").text
    for link in ("last-report", "report"):
        assert re.search(rf'<a id="{link}"[^>]* hidden>', page)
        assert f"element('{link}')" in script


@pytest.mark.slow
def test_a_training_that_is_stopped_is_reported(
    serve_app: Callable[..., Any], tiny_studies: Path, tmp_path: Path
) -> None:
    with serve_app(tiny_studies, tmp_path, {**TINY, "train.steps": "100000", "train.validate_every": "10"}) as server:
        assert server.delete("/train/").ok
        assert server.post("/train/vqseg").ok
        server.wait(lambda stats: "validation" in stats)
        assert server.get("/vqseg/training").json()["reports"] == []
        assert server.delete("/train/").ok
        server.wait(lambda stats: bool(server.get("/vqseg/training").json()["reports"]))
        (name,) = server.get("/vqseg/training").json()["reports"]
        assert re.search(r"<dt>Training</dt><dd>stopped</dd>", server.get(f"/vqseg/reports/{name}").text)
