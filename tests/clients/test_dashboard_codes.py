"""What the dashboard shows of single studies, where the server is slow, busy, or says the same again: their codes and
their pictures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from dashboard_page import WIDE, Dashboard, decimals
from playwright.sync_api import Page, Route, expect
from servers import APP, TINY, Server, python_module, serve
from trainable_studies import LABELLED, UNLABELLED, Studies, phantoms
from watched_servers import QUICK, publish

pytestmark = pytest.mark.slow

SECONDS = 1000.0


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    return phantoms(tmp_path_factory.mktemp("codes") / "studies")


@pytest.fixture(scope="module")
def server(studies: Studies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With two versions of a model that was never trained."""
    folder = tmp_path_factory.mktemp("codes")
    for seed in (0, 1):
        publish(folder / "run", {"lung": 1, "tumour": 2}, QUICK, seed)
    with serve(python_module(), str(APP), studies.folder, folder, folder, TINY | studies.conf) as running:
        yield running


def picture_of(page: Page, study: str) -> Any:
    return page.get_by_role("img", name=f"Codes of the middle slice of {study}")


def test_a_key_says_which_code_each_colour_is(dashboard: Dashboard, studies: Studies) -> None:
    page = dashboard.page
    for study in studies.ids[:2]:
        page.get_by_label("Codes of study").select_option(study)
        expect(picture_of(page, study)).to_be_visible()
        told = dashboard.server.get(f"/vqseg/studies/{study}/codes").json()
        assert picture_of(page, study).get_attribute("src") == told["picture"]
        assert dashboard.table("#codes") == [
            ["", str(one["code"]), f"{decimals(100 * one['share'], 1)} %"] for one in told["codes"]
        ]
        swatches = page.locator("#codes .swatch").evaluate_all(
            "all => all.map(one => getComputedStyle(one).backgroundColor)"
        )
        assert swatches == [rgb(one["colour"]) for one in told["codes"]]
        assert len(set(swatches)) == len(told["codes"]) > 1


def rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*bytes.fromhex(colour.removeprefix("#")))


def test_the_use_of_every_code_stands_in_the_table(dashboard: Dashboard) -> None:
    def of_many_codes(route: Route) -> None:
        answer = route.fetch()
        told = {**answer.json(), "codes": 4096, "studies": 1, "used": 300, "usage": [1 / 300] * 300}
        route.fulfill(response=answer, json=told)

    dashboard.page.route("**/vqseg/codebook", of_many_codes)
    dashboard.page.evaluate("import('/vqseg/dashboard/codebook.js').then(codebook => codebook.readCodebook())")
    assert [int(row[0]) for row in dashboard.table("#usage-chart")] == list(range(1, 301))


def asked_codes(dashboard: Dashboard) -> int:
    return sum(address.endswith("/codes") for address in dashboard.asked)


def test_codes_that_are_shown_are_asked_for_again_only_when_the_model_is_another(
    dashboard: Dashboard, studies: Studies
) -> None:
    page, server, study = dashboard.page, dashboard.server, studies.ids[2]
    page.get_by_label("Codes of study").select_option(study)
    expect(picture_of(page, study)).to_be_visible()
    page.evaluate(
        """() => {
            window.hidden = 0;
            const figure = document.getElementById('code-map');
            new MutationObserver(() => (window.hidden += figure.hidden)).observe(figure, { attributes: true });
        }"""
    )
    before = asked_codes(dashboard)
    for _ in range(3):
        page.evaluate("import('/vqseg/dashboard/codebook.js').then(codebook => codebook.readCodebook())")
    assert asked_codes(dashboard) == before
    assert page.evaluate("window.hidden") == 0
    told = server.get("/vqseg/models").json()
    picture = picture_of(page, study).get_attribute("src")
    other = next(one["version"] for one in told["versions"] if not one["live"])
    assert server.post(f"/vqseg/models/{other}/live").ok
    expect(picture_of(page, study)).not_to_have_attribute("src", picture or "", timeout=90 * SECONDS)
    assert asked_codes(dashboard) == before + 1
    assert server.post(f"/vqseg/models/{told['live']}/live").ok


def test_a_slower_answer_does_not_take_the_place_of_a_later_one(dashboard: Dashboard, studies: Studies) -> None:
    page, (slow, refused, quick) = dashboard.page, studies.ids[:3]
    held: list[Route] = []
    page.route(re.compile(f"/studies/({slow}|{refused})/codes$"), lambda route: held.append(route))
    choice = page.get_by_label("Codes of study")
    for study in (slow, refused):
        choice.select_option(study)
        page.wait_for_timeout(200)
    choice.select_option(quick)
    expect(picture_of(page, quick)).to_be_visible()
    table = dashboard.table("#codes")
    with page.expect_response(f"**/studies/{slow}/codes"):
        held[0].continue_()
    with page.expect_response(f"**/studies/{refused}/codes"):
        held[1].fulfill(status=200, body="no JSON")
    page.wait_for_timeout(500)
    expect(picture_of(page, quick)).to_be_visible()
    expect(page.locator("#codebook-refusal")).to_be_empty()
    assert dashboard.table("#codes") == table
    assert choice.input_value() == quick


def test_a_version_is_made_live_with_the_keyboard_which_stays_at_it(dashboard: Dashboard) -> None:
    page = dashboard.page
    told = dashboard.server.get("/vqseg/models").json()
    other = next(one["version"] for one in told["versions"] if not one["live"])
    for version in (other, told["live"]):
        page.get_by_role("button", name=f"Make {version} live").focus()
        page.keyboard.press("Enter")
        expect(page.locator(f'#models tr.live[data-version="{version}"]')).to_be_visible()
        page.wait_for_timeout(1500)  # until the server has told of it, too
        assert dashboard.focused("version") == version
        assert page.evaluate("document.activeElement.matches(':focus-visible')"), "where it is cannot be seen"
        # From there it goes on, and does not begin at the top again.
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.querySelector('main').contains(document.activeElement)")


# --- studies that come and are labelled ---


def test_a_study_that_comes_is_labelled_and_goes_is_followed(dashboard: Dashboard, studies: Studies) -> None:
    page, server, new = dashboard.page, dashboard.server, "arrived"
    entry = page.locator(f'#ranking li[data-study="{new}"]')
    offered = page.locator(f'#code-study option[value="{new}"]')
    count, total, like = page.locator("#studies"), len(studies.ids), studies.ids[0]
    expect(page.locator("#ranking li")).to_have_count(UNLABELLED, timeout=600 * SECONDS)
    files = {"file": (f"{new}.nii.gz", (studies.folder / f"{like}.nii.gz").read_bytes())}
    assert requests.put(f"{server.url}/datastore/image", params={"image": new}, files=files, timeout=60).ok
    try:
        expect(count).to_have_text(f"{total + 1} studies, {LABELLED} labelled", timeout=90 * SECONDS)
        # It is scored without being asked for.
        expect(entry).to_have_count(1, timeout=600 * SECONDS)
        expect(offered).to_have_count(1)
        assert server.put_label(new, studies.label_of(like)).ok
        expect(count).to_have_text(f"{total + 1} studies, {LABELLED + 1} labelled", timeout=90 * SECONDS)
        expect(entry).to_have_count(0)
    finally:
        assert server.delete(f"/datastore/image?id={new}").ok
    expect(count).to_have_text(f"{total} studies, {LABELLED} labelled", timeout=90 * SECONDS)
    expect(offered).to_have_count(0)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("images", {"/vqseg/ranking", "/info/", "/datastore/"}),
        ("labels", {"/vqseg/ranking", "/info/", "/datastore/", "/vqseg/labels"}),
        ("scores", {"/vqseg/ranking", "/vqseg/codebook"}),
    ],
)
def test_what_has_changed_is_asked_for_again_and_nothing_else(
    server: Server, chromium: Any, changed: str, expected: set[str]
) -> None:
    """On a real server one change brings others along: a label is followed by scores, say."""
    page = chromium.new_page(viewport=WIDE)
    numbers = dict.fromkeys(("trainings", "points", "models", "images", "labels", "scores"), 1)
    asked: list[str] = []

    def tell(route: Route) -> None:
        body = f"retry: 200\nevent: changed\ndata: {json.dumps(numbers)}\n\n"
        route.fulfill(content_type="text/event-stream", body=body)

    page.route("**/vqseg/events", tell)
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    # The page is told of nothing here: of scores that are still being made it would never learn.
    end = time.monotonic() + 600
    while server.get("/vqseg/ranking").json()["scored"] < UNLABELLED:
        assert time.monotonic() < end
        time.sleep(0.2)
    page.goto(f"{server.url}/vqseg/")
    expect(page.locator("#ranking li")).to_have_count(UNLABELLED)
    page.wait_for_timeout(2000)
    asked.clear()
    numbers[changed] = 2
    page.wait_for_timeout(2000)
    assert {path for path in asked if path != "/vqseg/events"} == expected
    page.close()


# --- a server whose line is full ---


def test_a_picture_that_is_refused_for_now_is_asked_for_again_when_the_server_says(
    server: Server, studies: Studies, chromium: Any
) -> None:
    page = chromium.new_page(viewport=WIDE)
    refused: list[str] = []
    asked: dict[str, list[float]] = {}

    def refuse_twice(route: Route) -> None:
        asked.setdefault(route.request.url, []).append(time.monotonic())
        if refused.count(route.request.url) == 2:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=503, headers={"Retry-After": "2"}, json={"detail": "16 pictures are waiting already"})

    page.route("**/picture", refuse_twice)
    dashboard = Dashboard(page, server)
    pictures = page.locator("#ranking img")
    expect(pictures).to_have_count(UNLABELLED, timeout=600 * SECONDS)  # they come as they are scored
    assert pictures.evaluate_all("all => all.map(one => one.alt)") == [
        f"Middle slice of {one.get_attribute('data-study')}" for one in page.locator("#ranking li").all()
    ]
    page.wait_for_function(
        "() => [...document.querySelectorAll('#ranking img')].every(one => one.naturalWidth > 0)", timeout=60 * SECONDS
    )
    assert len(refused) == 2 * UNLABELLED
    # An image tells nobody when to come again, so it is asked for a second time at once, and then as the answer says.
    assert all(third - second > 1.5 for _, second, third in asked.values())
    assert all("503" in failure for failure in dashboard.failures)
    page.close()


def test_a_server_that_stays_busy_is_not_asked_for_ever(server: Server, chromium: Any) -> None:
    page = chromium.new_page(viewport=WIDE)
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "16 pictures are waiting already"})

    page.route("**/picture", refuse)
    Dashboard(page, server)
    expect(page.locator("#ranking img")).to_have_count(UNLABELLED, timeout=600 * SECONDS)
    page.wait_for_timeout(8000)
    known = len(asked)
    assert known <= 4 * UNLABELLED
    page.wait_for_timeout(3000)
    assert len(asked) == known
    page.close()
