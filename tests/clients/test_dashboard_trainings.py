"""The dashboard of a server with two trainings behind it and an endless one, which is begun, stopped and continued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dashboard_page import WIDE, Dashboard, decimals
from playwright.sync_api import Page, expect
from servers import APP, TINY, Server, python_module, serve
from trainable_studies import phantoms

pytestmark = pytest.mark.slow

# A checkpoint now and then, so that what was trained since is lost; no validation for a long time.
ENDLESS = {
    **TINY,
    "train.steps": "100000",
    "train.validate_every": "50000",
    "train.checkpoint_every": "20",
    "tracking.every": "3",
}
SHORT = {"steps": 30, "train.validate_every": 10}
SECONDS = 1000.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two trainings are done."""
    folder = tmp_path_factory.mktemp("trainings")
    studies = phantoms(folder / "studies")
    with serve(python_module(), str(APP), studies.folder, folder, folder, ENDLESS | studies.conf) as running:
        for number, method in enumerate(("supervised", "vqseg"), 1):
            assert running.post("/train/vqseg", SHORT | {"method": method}).ok
            # The task ends some seconds after the training.
            told = wait(running, lambda told, n=number: len(told["reports"]) == n and is_free(running))
            assert told["status"]["state"] == "done", told
        yield running


def is_free(server: Server) -> bool:
    return server.get("/train/", check_if_running=True).status_code == 404


def wait(server: Server, done: Callable[[dict[str, Any]], bool], seconds: float = 600) -> dict[str, Any]:
    """What `/vqseg/training` says as soon as it is `done`."""
    end = time.monotonic() + seconds
    while not done(told := server.get("/vqseg/training").json()):
        assert time.monotonic() < end, told
        time.sleep(0.2)
    return told


@pytest.fixture(scope="module")
def training(server: Server, chromium: Any) -> Iterator[Dashboard]:
    """A page on which the endless training was begun, with the keyboard."""
    page = chromium.new_page(viewport=WIDE)
    dashboard = Dashboard(page, server)
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "false", timeout=300 * SECONDS)
    yield dashboard
    page.close()


def losses_of(points: list[dict[str, Any]]) -> list[list[str]]:
    """The table below the chart of the losses, as it ought to be."""
    names = list(dict.fromkeys(name for point in points for name in point["losses"]))
    return [[str(one["step"]), *(decimals(one["losses"].get(name), 4) for name in names)] for one in points]


def test_a_training_of_the_past_can_be_chosen(dashboard: Dashboard) -> None:
    page = dashboard.page
    told = dashboard.server.get("/vqseg/training").json()
    older, newer = told["trainings"][:2]
    choice = page.locator("#training-choice")
    assert [one["method"] for one in (older, newer)] == ["supervised", "vqseg"]
    offered = choice.locator("option")
    expect(offered).to_have_count(len(told["trainings"]))
    assert [text.split(", ")[1] for text in offered.all_text_contents()][-2:] == ["vqseg", "supervised"]
    for one in (older, newer, older):
        choice.select_option(str(one["started"]))
        assert [row[:2] for row in dashboard.table("#dice-chart")] == [
            [str(validation["step"]), decimals(validation["dice"], 3)] for validation in one["validations"]
        ]
        assert dashboard.table("#loss-chart") == losses_of(one["points"] or one["validations"])
        expect(page.locator("#report")).to_have_attribute("href", f"/vqseg/reports/{one['report']}")
    assert older["validations"] != newer["validations"]
    # What was chosen stays so when the server tells of more.
    page.evaluate("import('/vqseg/dashboard/curves.js').then(curves => curves.readTrainings())")
    assert choice.input_value() == str(older["started"])


def test_losses_arrive_by_themselves_long_before_a_validation(training: Dashboard) -> None:
    page, tables = training.page, []
    expect(page.locator("#dice-chart")).to_have_text("No validation yet.", timeout=180 * SECONDS)
    end = time.monotonic() + 600
    while len(tables) < 4:
        assert time.monotonic() < end, tables
        if (table := training.table("#loss-chart")) and table not in tables:
            tables.append(table)
        page.wait_for_timeout(200)
    assert [len(table) for table in tables] == sorted(len(table) for table in tables)
    told = training.server.get("/vqseg/training").json()["trainings"][-1]
    assert told["validations"] == []
    assert all(table == losses_of(told["points"])[: len(table)] for table in tables)
    drawn = page.locator("#loss-chart .plot").evaluate("plot => plot.data.map(({ x }) => x.length)")
    assert min(drawn) >= len(tables[-1])
    assert training.failures == []


def test_a_button_that_may_not_be_pressed_now_keeps_the_keyboard_and_does_nothing(training: Dashboard) -> None:
    page, start = training.page, training.page.locator("#start")
    start.focus()
    expect(start).to_have_attribute("aria-disabled", "true")
    assert page.evaluate("document.activeElement.id") == "start"
    before = len(training.asked)
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert not [address for address in training.asked[before:] if "/train/" in address]
    expect(page.locator("#training-refusal")).to_be_empty()


def test_a_training_is_stopped_and_continued_on_the_page(training: Dashboard) -> None:
    page, server = training.page, training.server
    first = wait(server, lambda told: told["status"]["step"] > 45)["status"]
    page.get_by_role("button", name="Stop").click()
    start = page.get_by_role("button", name="Continue training")
    expect(start).to_have_attribute("aria-disabled", "false", timeout=180 * SECONDS)
    assert page.evaluate("document.activeElement.id") == "stop"
    stopped = wait(server, lambda told: told["status"]["state"] == "interrupted")["status"]
    checkpoint = int(json.loads((server.run / "checkpoints" / "newest.json").read_text(encoding="utf-8"))[0])
    assert first["step"] - 20 <= checkpoint
    expect(page.locator("#training-words")).to_contain_text(f"interrupted at step {stopped['step']} of")

    start.click()
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "false", timeout=300 * SECONDS)
    expect(page.get_by_role("button", name="Start training")).to_have_attribute("aria-disabled", "true")
    steps, end = [checkpoint], time.monotonic() + 600
    # The status is told once a second, so the last checkpoint may be ahead of it.
    while steps[-1] <= max(stopped["step"], checkpoint):
        assert time.monotonic() < end, steps
        shown = training_seen(page)
        if shown["words"].startswith("step") and ";" not in shown["words"]:  # it trains, and does not read studies
            steps.append(int(shown["step"].split()[0]))
        page.wait_for_timeout(200)
    assert steps == sorted(steps), f"behind the checkpoint, or not forwards: {steps}"
    assert server.stats()["pid"] != first["pid"]
    told = wait(server, lambda told: told["trainings"][-1]["points"][-1]["step"] > checkpoint)
    assert len(told["trainings"]) == 3, "it was begun anew"
    points = [one["step"] for one in told["trainings"][-1]["points"]]
    assert points == sorted(set(points))
    assert points[0] < checkpoint < points[-1]
    assert training.failures == []


def test_a_training_with_options_of_its_own_is_continued_with_these(server: Server, chromium: Any) -> None:
    server.delete("/train/")
    wait(server, lambda told: told["status"]["state"] != "running" and is_free(server))
    options = {"steps": 70000, "train.validate_every": 35000, "method": "supervised"}
    assert server.post("/train/vqseg", options).ok
    first = wait(server, lambda told: told["status"].get("step", 0) > 45 and told["status"]["total_steps"] == 70000)
    assert server.delete("/train/").ok
    stopped = wait(server, lambda told: told["status"]["state"] == "interrupted" and is_free(server))
    assert stopped["status"]["continue_with"] == options
    page = chromium.new_page(viewport=WIDE)
    dashboard = Dashboard(page, server)
    page.get_by_role("button", name="Continue training").click()
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "false", timeout=300 * SECONDS)
    steps, end = [stopped["status"]["step"] - 20], time.monotonic() + 600
    while steps[-1] <= stopped["status"]["step"]:
        assert time.monotonic() < end, steps
        told = server.get("/vqseg/training").json()
        if told["status"]["message"] == "training":
            steps.append(told["status"]["step"])
        page.wait_for_timeout(200)
    assert steps == sorted(steps), f"it went back: {steps}"
    assert told["status"]["total_steps"] == 70000
    assert told["status"]["pid"] != first["status"]["pid"]
    assert len(told["trainings"]) == len(stopped["trainings"]), "it was begun anew"
    assert dashboard.failures == []
    page.close()


def training_seen(page: Page) -> dict[str, str]:
    seen: dict[str, str] = page.evaluate(
        """() => ({
            words: document.querySelector('#training-words').textContent,
            step: document.querySelector('#training-figures [data-name="Step"] dd').textContent,
        })"""
    )
    return seen
