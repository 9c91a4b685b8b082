"""The report of a training over REST: listed, opened as a page that can do nothing, and written also of one that was stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from servers import APP, TINY, python_module, serve


def test_a_report_is_listed_and_opened_by_its_name_alone(trained: Any) -> None:
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
    (trained.run / "reports" / "notes.html").write_text("mine", encoding="utf-8")
    for name in ("notes.html", "..%2Fstatus.json", "%2e%2e%2fstatus.json", "..", "20200101T000000.000000Z.html", "%00"):
        refused = trained.get(f"/vqseg/reports/{name}")
        assert refused.status_code == 404, name
        assert "pid" not in refused.text
        assert "mine" not in refused.text


def test_the_dashboard_is_given_what_it_links_to(trained: Any) -> None:
    page, script = trained.get("/vqseg/").text, trained.get("/vqseg/dashboard/training.js").text
    for link in ("last-report", "report"):
        assert re.search(rf'<a id="{link}"[^>]* hidden>', page)
        assert f"element('{link}')" in script


def test_a_training_that_is_stopped_is_reported(tmp_path: Path, studies_of_a_server: Path) -> None:
    conf = {**TINY, "train.steps": "2000", "train.validate_every": "10"}
    with serve(python_module(), str(APP), str(studies_of_a_server), tmp_path, tmp_path, conf) as server:
        server.post("/train/vqseg", json={})
        server.wait(lambda stats: stats.get("validation"))
        assert server.get("/vqseg/training").json()["reports"] == []
        server.delete("/train/")
        server.wait(lambda stats: server.get("/vqseg/training").json()["reports"])
        (name,) = server.get("/vqseg/training").json()["reports"]
        assert re.search(r"<dt>Training</dt><dd>stopped</dd>", server.get(f"/vqseg/reports/{name}").text)
