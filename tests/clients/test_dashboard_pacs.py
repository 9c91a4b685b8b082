"""The dashboard in front of a PACS, where a study is called by a UID and opens in the viewer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from builders import write_dicom
from dashboard_page import PHONE, WIDE, Dashboard
from ohif import Viewer
from playwright.sync_api import Locator, Route, expect
from running_pacs import RunningPACS
from servers import APP, TINY, Server, python_module, serve

pytestmark = pytest.mark.slow

NOTEBOOK = {"width": 1024, "height": 900}
ANNOTATOR = "Dr. Maximiliane Mustermann-Beispiel"


@pytest.fixture(scope="module")
def server(pacs: RunningPACS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dashboard_pacs")
    pacs.delete("SEG")
    conf = {**TINY, "labels": "lung,tumour"}
    with serve(python_module(), str(APP), pacs.dicomweb, folder, folder, conf) as running:
        yield running
    pacs.delete("SEG")


@pytest.fixture
def dashboard(server: Server, chromium: Any) -> Iterator[Dashboard]:
    page = chromium.new_page(viewport=WIDE)
    yield Dashboard(page, server)
    page.close()


def test_a_ranked_study_opens_in_the_viewer(dashboard: Dashboard, pacs: RunningPACS) -> None:
    page = dashboard.page
    expect(page.locator("#ranking li a")).to_have_count(len(pacs.series))
    entry = page.locator("#ranking li").last
    series = entry.get_attribute("data-study")
    assert series in pacs.series.values()
    assert dashboard.failures == []
    viewer = Viewer(page, dashboard.server.url)
    entry.get_by_role("link").click()
    viewer.wait_until_connected()
    assert viewer.shown_series() == series


def test_a_series_that_comes_to_the_pacs_shows_up_by_itself(
    dashboard: Dashboard, pacs: RunningPACS, orthanc: ModuleType, tmp_path: Path
) -> None:
    page, count = dashboard.page, len(pacs.series)
    expect(page.locator("#studies")).to_have_text(re.compile(f"^{count} studies"))
    image = np.random.default_rng(0).normal(100, 10, (16, 16, 8)).astype(np.int16)
    write_dicom(tmp_path / "series", image, np.eye(3)[0], np.eye(3)[1], (11.0, 11.0, 15.0))
    orthanc.load(tmp_path / "series", pacs.port)
    series = str(pydicom.dcmread(next((tmp_path / "series").iterdir())).SeriesInstanceUID)
    try:
        expect(page.locator("#studies")).to_have_text(re.compile(f"^{count + 1} studies"), timeout=60_000)
        expect(page.locator(f'#ranking li[data-study="{series}"]')).to_have_count(1)
        expect(page.locator(f'#code-study option[value="{series}"]')).to_have_count(1)
    finally:
        pacs.delete_series(series)
    # Sooner than the server would ask its PACS by itself.
    dashboard.server.wait_until_listed(series, False)
    expect(page.locator("#studies")).to_have_text(re.compile(f"^{count} studies"))


def test_the_keyboard_stays_on_its_study_when_the_ranking_is_another(dashboard: Dashboard, pacs: RunningPACS) -> None:
    page, entries = dashboard.page, dashboard.page.locator("#ranking li")
    expect(entries).to_have_count(len(pacs.series))
    before = [one.get_attribute("data-study") for one in entries.all()]

    def turn_around(route: Route) -> None:
        answer = route.fetch()
        told = answer.json()
        ranked = [{**study, "score": 0.5, "rank": rank} for rank, study in enumerate(told["studies"][::-1], 1)]
        route.fulfill(response=answer, json={**told, "studies": ranked})

    entries.nth(1).get_by_role("link").focus()
    page.route("**/vqseg/ranking?*", turn_around)
    read_again = "import('/vqseg/dashboard/ranking.js').then(ranking => ranking.readRanking())"
    page.evaluate(read_again)
    assert [one.get_attribute("data-study") for one in entries.all()] == before[::-1]
    expect(entries.first).to_contain_text("score 0.5000")
    assert dashboard.focused("study") == before[1]
    assert page.evaluate("document.activeElement.tagName") == "A"

    # Where the study is gone the keyboard is at least in its list.
    page.route("**/vqseg/ranking?*", lambda route: route.fulfill(json=without(route, before[1])))
    page.evaluate(read_again)
    expect(entries).to_have_count(len(before) - 1)
    assert page.evaluate("document.activeElement.id") == "ranking"


def without(route: Route, study: str | None) -> dict[str, Any]:
    told: dict[str, Any] = route.fetch().json()
    return {**told, "studies": [one for one in told["studies"] if one["id"] != study]}


def test_long_names_are_shortened_and_cut_nothing_off(
    server: Server, pacs: RunningPACS, chromium: Any, tmp_path: Path
) -> None:
    series = pacs.series["phantom_0"]
    (tmp_path / "label.bin").write_bytes(pacs.masks["phantom_0"].tobytes(order="F"))
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    form = {
        "params": (None, json.dumps({"label_info": names, "client_id": ANNOTATOR})),
        "label": ("label.bin", (tmp_path / "label.bin").read_bytes()),
    }
    answer = requests.put(f"{server.url}/datastore/label", params={"image": series}, files=form, timeout=60)
    assert answer.ok, answer.text
    for size in (WIDE, NOTEBOOK, PHONE):
        page = chromium.new_page(viewport=size)
        dashboard = Dashboard(page, server)
        entries = page.locator("#ranking li")
        expect(entries).to_have_count(len(pacs.series) - 1)
        for entry in entries.all():
            assert_shortened(entry.get_by_role("link"), entry.get_attribute("data-study") or "")
        cells = page.locator("#labels tbody tr").first.locator("td")
        expect(cells.nth(2)).to_have_text(ANNOTATOR)
        assert_shortened(cells.nth(1).locator("span"), series)
        table = page.locator("#labels").locator("..")
        assert table.evaluate("one => one.scrollWidth <= one.clientWidth"), f"cut off at {size['width']} pixels"
        if size == WIDE:
            cells.nth(2).evaluate("cell => { cell.textContent = 'demonstration'; }")
            lines = cells.nth(2).evaluate(
                "cell => { const all = document.createRange(); all.selectNodeContents(cell); "
                "return all.getClientRects().length; }"
            )
            assert lines == 1, "a word is broken though there is room"
            assert table.evaluate("one => one.scrollWidth <= one.clientWidth")
        assert dashboard.failures == []
        page.close()


def assert_shortened(name: Locator, uid: str) -> None:
    text = name.text_content() or ""
    start, _, end = text.partition("…")
    assert len(text) < 25 < len(uid)
    assert uid.startswith(start)
    assert uid.endswith(end)
    assert len(end) >= 8
    assert name.get_attribute("title") == uid
