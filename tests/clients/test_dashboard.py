"""The dashboard in a real browser, in front of a real server that trains: on phantoms, and on real
hippocampi where they are at hand."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from typing import Any

import pytest
import requests
from answers import read_nrrd
from dashboard_page import PHONE, WIDE, Dashboard, decimals, faults_of, figures_of
from playwright.sync_api import Page, expect
from servers import APP, TINY, Server, python_module, serve
from trainable_studies import LABELLED, UNLABELLED, Studies, hippocampi, phantoms

pytestmark = pytest.mark.slow

VALIDATIONS = 5
CONF = {
    **TINY,
    # Long enough to be looked at some dozen times on a fast machine.
    "train.steps": "300",
    "train.validate_every": "60",
    "train.labelled_batch": "2",
    "train.unlabelled_batch": "2",
    "model.channels": "[8,16]",
}


@pytest.fixture(
    scope="module",
    params=[phantoms, pytest.param(hippocampi, marks=[pytest.mark.data, pytest.mark.long])],
    ids=["phantoms", "hippocampi"],
)
def studies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studies:
    made: Studies = request.param(tmp_path_factory.mktemp("studies"))
    return made


@pytest.fixture(scope="module")
def server(studies: Studies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dashboard")
    with serve(python_module(), str(APP), studies.folder, folder, folder, CONF | studies.conf) as running:
        yield running


@dataclass(frozen=True)
class Moment:
    """What the server told of the training just before and just after the page `shown` these figures."""

    before: dict[str, Any]
    shown: dict[str, str]
    after: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.shown["Step"].split()[0])

    @property
    def agrees(self) -> bool:
        """Whether the page has caught up with the server, which meanwhile told of no other step."""
        steps = {told["status"]["step"] for told in (self.before, self.after)}
        return steps == {self.step} and 0 < self.step < self.after["status"]["total_steps"]


@dataclass(frozen=True)
class Training:
    """One that was begun on the page: `moments` while it ran, what was `said` to screen readers of it and `written`,
    and the page's `failures`."""

    moments: list[Moment]
    said: list[str]
    written: list[str]
    failures: list[str]


@pytest.fixture(scope="module")
def trained(server: Server, chromium: Any) -> Training:
    """Trains at the press of the page's button."""
    page = chromium.new_page(viewport=WIDE)
    dashboard = Dashboard(page, server)
    record_texts(page, "training-news", "training-words")
    page.get_by_role("button", name="Start training").click()
    moments, end = [], time.monotonic() + 600
    while time.monotonic() < end:
        before = server.get("/vqseg/training").json()
        shown = dashboard.figures()
        after = server.get("/vqseg/training").json()
        if before["status"]["state"] == "running" == after["status"]["state"] and "Step" in shown:
            moments.append(Moment(before, shown, after))
        if after["status"]["state"] in ("done", "failed"):
            break
        time.sleep(0.2)
    assert server.stats()["state"] == "done"
    expect(page.locator("#training-news")).to_contain_text("trained")
    texts = page.evaluate("window.texts")
    page.close()
    return Training(moments, texts["training-news"], texts["training-words"], dashboard.failures)


def record_texts(page: Page, *ids: str) -> None:
    """Keep every text that these elements of the page get from now on."""
    page.evaluate(
        """ids => {
            window.texts = Object.fromEntries(ids.map(id => [id, []]));
            ids.map(id => document.getElementById(id)).forEach(one =>
                new MutationObserver(() => window.texts[one.id].push(one.textContent)).observe(one, { childList: true })
            );
        }""",
        list(ids),
    )


@pytest.fixture
def dashboard(trained: Training, dashboard: Dashboard) -> Dashboard:
    """Opened when the training is over."""
    return dashboard


# --- the training ---


def test_the_numbers_move_while_it_trains(trained: Training) -> None:
    assert trained.failures == []
    steps = [moment.step for moment in trained.moments]
    assert steps == sorted(steps)
    least = dict.fromkeys(("Step", "Epoch", "Time left", "Loss: labelled", "Loss: reconstruction", "Loss: codebook"), 5)
    for name, number in (least | {"Validation Dice": 2, "Best Dice": 1}).items():
        assert len({moment.shown.get(name) for moment in trained.moments} - {None}) >= number, name


def test_the_numbers_are_those_of_the_server_while_it_trains(trained: Training) -> None:
    # The page is told once a second, so it may be behind by what is trained meanwhile, and never ahead.
    assert all(moment.step <= moment.after["status"]["step"] for moment in trained.moments)
    alike = [moment for moment in trained.moments if moment.agrees]
    assert len({moment.step for moment in alike}) >= 3, "the page was hardly ever seen at the step of the server"
    for moment in alike:
        expected, shown = figures_of(moment.after["status"]), dict(moment.shown)
        # A validation is told before the step at whose end it is.
        dice = {one["step"]: decimals(one["dice"], 3) for one in moment.after["trainings"][-1]["validations"]}
        last = [dice[step] for step in dice if step <= moment.step][-1:] or [None]
        assert shown.pop("Validation Dice", None) in [*last, *(dice[step] for step in dice if step > moment.step)]
        expected.pop("Validation Dice", None)
        gib = float(shown.pop("Memory").removesuffix(" GiB"))
        assert gib > 0.1
        assert any(abs(gib - one["memory_bytes"] / 2**30) < 0.25 for one in (moment.before, moment.after))
        assert shown == expected


def test_a_screen_reader_is_told_of_states_and_validations_and_not_of_every_second(
    trained: Training, dashboard: Dashboard
) -> None:
    validations = dashboard.server.get("/vqseg/training").json()["trainings"][-1]["validations"]
    dice = [decimals(one["dice"], 3) for one in validations]
    assert trained.said[0] == "The training runs"
    possible = iter(["The training runs", *(f"The training runs; validation Dice {one}" for one in dice)])
    assert all(text in possible for text in trained.said[:-1]), "something else, or not in its order"
    assert len(trained.said) >= 3
    assert trained.said[-1].startswith("trained, Dice")
    assert len(trained.written) > 2 * len(trained.said)
    live = dashboard.page.locator("#training-words").evaluate("one => one.closest('[role=status], [aria-live]')")
    assert live is None


def test_what_stands_at_the_end_is_what_the_server_says(dashboard: Dashboard) -> None:
    told = dashboard.server.get("/vqseg/training").json()
    expected, curve = figures_of(told["status"]), told["trainings"][-1]["validations"]
    assert dashboard.figures() == expected
    assert expected["Epoch"] == "{0} of {0}".format(told["status"]["total_epochs"])
    assert expected["Best Dice"] == decimals(max(one["dice"] for one in curve), 3)
    shown = [row[:2] for row in dashboard.table("#dice-chart")]
    assert shown == [[str(one["step"]), decimals(one["dice"], 3)] for one in curve]
    assert len(curve) == VALIDATIONS


@pytest.mark.parametrize("link", ["Report of the last training", "Report of this training"])
def test_the_report_of_a_training_opens_and_asks_for_nothing(dashboard: Dashboard, chromium: Any, link: str) -> None:
    page = dashboard.page
    expect(page.get_by_role("link", name=link)).to_be_visible(timeout=60_000)  # it is written after the last step
    told = dashboard.server.get("/vqseg/training").json()
    with page.expect_popup() as opened:
        page.get_by_role("link", name=link).click()
    report, asked = opened.value, []
    report.wait_for_url("**/vqseg/reports/**")  # a window that is still empty cannot be loaded again
    report.on("request", lambda request: asked.append(request.url))
    report.reload()
    dice = max(one["dice"] for one in told["trainings"][-1]["validations"])
    expect(report.locator("body")).to_contain_text(f"{dice:.3f}")
    assert report.url.endswith(f"/vqseg/reports/{told['reports'][0]}")
    assert [address for address in asked if not address.startswith("data:")] == [report.url]
    # Its own page runs no scripts, and axe-core is one; in that of the dashboard its scripts would go on.
    blank = chromium.new_page()
    blank.set_content(requests.get(report.url, timeout=60).text)
    assert faults_of(blank) == []
    blank.close()
    report.close()


# --- versions ---


def mask_of(server: Server, image: str, version: str | None = None) -> tuple[str, bytes]:
    """Which version answers `/infer`, and its voxels."""
    params = {"result_extension": ".nrrd", "result_compress": False}
    answer = server.infer(image, params | ({"model_version": version} if version else {}))
    assert answer.ok, answer.text
    parts = BytesParser().parsebytes(
        b"Content-Type: " + answer.headers["content-type"].encode() + b"\n\n" + answer.content
    )
    said, file = (part.get_payload(decode=True) for part in parts.get_payload())
    return json.loads(said)["model_version"], read_nrrd(file)[1].tobytes()


def test_rolling_back_changes_what_answers(dashboard: Dashboard, studies: Studies) -> None:
    server, page = dashboard.server, dashboard.page
    expect(page.locator("#models tr.live")).to_have_count(1)
    told = server.get("/vqseg/models").json()
    newest, former = told["live"], told["rollback_to"]
    assert dashboard.versions() == [one["version"] for one in told["versions"]]
    assert dashboard.live() == newest
    image = studies.ids[-1]
    masks = {name: mask_of(server, image, name) for name in (newest, former)}
    assert masks[newest][1] != masks[former][1]
    assert mask_of(server, image) == masks[newest]

    page.get_by_role("button", name=f"Roll back to {former}").click()
    expect(page.locator(f'#models tr.live[data-version="{former}"]')).to_be_visible()
    assert mask_of(server, image) == masks[former]

    page.get_by_role("button", name=f"Make {newest} live").click()
    expect(page.locator(f'#models tr.live[data-version="{newest}"]')).to_be_visible()
    assert mask_of(server, image) == masks[newest]


# --- studies ---


def test_unlabelled_studies_are_ranked_with_score_reason_and_picture(dashboard: Dashboard) -> None:
    page, server = dashboard.page, dashboard.server
    page.get_by_label("Strategy").select_option("codebook_coverage")
    end = time.monotonic() + 600
    while (told := server.get("/vqseg/ranking", strategy="codebook_coverage").json())["missing"]:
        assert time.monotonic() < end, told
        time.sleep(0.5)
    entries = page.locator("#ranking li")
    expect(entries).to_contain_text([f"{one['id']}score {one['score']:.4f}{one['reason']}" for one in told["studies"]])
    assert len(told["studies"]) == UNLABELLED
    for entry in entries.all():
        entry.scroll_into_view_if_needed()
        expect(entry.locator("img")).to_have_js_property("complete", True)
        assert entry.locator("img").evaluate("picture => picture.naturalWidth") > 0


def test_the_use_of_the_codes_is_that_of_the_live_model(dashboard: Dashboard) -> None:
    page, server = dashboard.page, dashboard.server
    end = time.monotonic() + 600
    while (told := server.get("/vqseg/codebook").json())["studies"] < LABELLED + UNLABELLED:
        assert time.monotonic() < end, told
        time.sleep(0.5)
    figures = {
        "Codes": str(told["codes"]),
        "In use": str(told["used"]),
        "As if equally used": decimals(told["perplexity"], 1),
        "Effective replacements": decimals(told["replacement_codes"], 1),
        "Studies looked at": str(told["studies"]),
    }
    for name, text in figures.items():
        expect(page.locator(f'#codebook-figures [data-name="{name}"] dd')).to_have_text(text)
    drawn = page.locator("#usage-chart .plot").evaluate("plot => plot.data.map(({ y }) => [...y])")
    assert drawn == [told["usage"]]
    assert [[int(place), float(share)] for place, share in dashboard.table("#usage-chart")] == [
        [at, share] for at, share in enumerate(told["usage"], 1)
    ]
    published = [one for one in all_validations(server) if one["published"] == dashboard.live()]
    assert [one["replacement_codes"] for one in published] == [told["replacement_codes"]]


def all_validations(server: Server) -> list[dict[str, Any]]:
    trainings = server.get("/vqseg/training").json()["trainings"]
    return [one for training in trainings for one in training["validations"]]


# --- labels ---


def put_label(server: Server, studies: Studies, image: str, user: str) -> None:
    form = {
        "params": (None, json.dumps({"client_id": user})),
        "label": (f"{image}.nii.gz", studies.label_of(image).read_bytes()),
    }
    answer = requests.put(f"{server.url}/datastore/label", params={"image": image}, files=form, timeout=60)
    assert answer.ok, answer.text


def test_a_label_shows_up_by_itself_and_its_words_are_no_markup(dashboard: Dashboard, studies: Studies) -> None:
    image, user = studies.ids[0], "<img src=x onerror=alert(1)>"
    put_label(dashboard.server, studies, image, user)
    latest = dashboard.page.locator("#labels tbody tr").first
    expect(latest).to_contain_text(image)
    expect(latest).to_contain_text(user)
    assert dashboard.page.locator("#labels img").count() == 0


def test_the_labels_of_each_annotator_are_counted_by_day(dashboard: Dashboard, studies: Studies) -> None:
    server, page = dashboard.server, dashboard.page
    for image, user in zip(studies.ids, ("Ada", "Ben", "Ada"), strict=False):
        put_label(server, studies, image, user)
    told = server.get("/vqseg/labels").json()
    wanted = {(one["day"], one["user"] or "nobody named"): one["labels"] for one in told["by_day"]}
    of_user = Counter(user for (_, user), count in wanted.items() for _ in range(count))
    assert (of_user["Ada"], of_user["Ben"]) == (2, 1)
    expect(page.locator("#labels-chart .plot")).to_have_attribute("aria-label", re.compile(f"^{told['total']} labels "))
    people = dashboard.head("#labels-chart")[1:]
    shown = {
        (day, who): int(count)
        for day, *counts in dashboard.table("#labels-chart")
        for who, count in zip(people, counts, strict=True)
    }
    assert {key: count for key, count in shown.items() if count} == wanted


# --- everybody can use it, nobody else is asked ---


def test_nobody_but_the_server_is_asked(dashboard: Dashboard) -> None:
    dashboard.page.get_by_label("Codes of study").select_option(index=1)
    expect(dashboard.page.get_by_role("img", name="Codes of the middle slice")).to_be_visible()
    assert len(dashboard.asked) > 15
    own = (f"{dashboard.server.url}/", "data:", f"blob:{dashboard.server.url}/")
    assert [address for address in dashboard.asked if not address.startswith(own)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_no_serious_fault(
    server: Server, trained: Any, chromium: Any, scheme: str, size: dict[str, int]
) -> None:
    page = chromium.new_page(viewport=size, color_scheme=scheme)
    dashboard = Dashboard(page, server)
    page.get_by_label("Codes of study").select_option(index=1)
    expect(page.get_by_role("img", name="Codes of the middle slice")).to_be_visible()
    for numbers in page.locator("details:visible summary").all():
        numbers.click()
    assert faults_of(dashboard.page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page is wider than its window"
    )
    page.close()


def test_axe_would_find_one(dashboard: Dashboard) -> None:
    dashboard.page.evaluate("document.querySelector('#start').style.cssText = 'color: #999; background: #aaa'")
    dashboard.page.evaluate(
        "document.querySelector('#strategy').closest('label').replaceWith(document.querySelector('#strategy'))"
    )
    found = {fault.split(":")[0] for fault in faults_of(dashboard.page)}
    assert {"color-contrast", "select-name"} <= found


def test_the_keyboard_reaches_every_control_in_the_order_of_the_page(dashboard: Dashboard) -> None:
    page = dashboard.page
    expect(page.locator("#ranking li")).to_have_count(UNLABELLED)
    controls = "a[href], button:not([disabled]), select, summary, [tabindex='0']"
    expected = page.evaluate(
        f"[...document.querySelectorAll({controls!r})].filter(one => one.checkVisibility()).length"
    )
    reached = []
    for _ in range(expected):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                f"""() => {{
                    const one = document.activeElement, style = getComputedStyle(one);
                    const all = [...document.querySelectorAll({controls!r})].filter(one => one.checkVisibility());
                    return [all.indexOf(one), style.outlineStyle !== 'none'];
                }}"""
            )
        )
    assert [place for place, _ in reached] == list(range(expected))
    assert all(seen for _, seen in reached), "where the keyboard is cannot be seen"
