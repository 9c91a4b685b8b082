"""The dashboard in a real browser, in front of a real server that trains: on phantoms, and on real
hippocampi where they are at hand."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from answers import read_nrrd
from axe_playwright_python.sync_playwright import Axe
from builders import real_data, write_nifti
from ohif import Viewer
from playwright.sync_api import Error, Page, expect
from running_pacs import RunningPACS
from servers import APP, TINY, Server, python_module, serve

from vqseg.data.phantom import Grid as PhantomGrid
from vqseg.data.phantom import draw_anatomy, render
from vqseg.tokens import ROLES, AccountFile

pytestmark = pytest.mark.slow

LABELLED, UNLABELLED = 4, 5
CONF = {
    **TINY,
    "train.steps": "150",
    "train.validate_every": "30",
    "train.labelled_batch": "2",
    "train.unlabelled_batch": "2",
    "model.channels": "[8,16]",
}
WIDE, PHONE = {"width": 1280, "height": 1400}, {"width": 390, "height": 844}
# What is wrong for somebody, not what could be nicer.
FAULTS = ("serious", "critical")


def faults_of(page: Page) -> list[str]:
    """What axe-core finds on a page as it is now."""
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in Axe().run(page).response["violations"]
        if one["impact"] in FAULTS
        for node in one["nodes"]
    ]


class Dashboard:
    """The page of a server. `asked` are the addresses it asked for, `failures` what went wrong in it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        self.asked: list[str] = []
        self.failures: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.failures.append(str(error)))
        page.on("console", lambda line: self.failures.append(line.text) if line.type == "error" else None)
        page.goto(f"{server.url}/vqseg/")
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator("#studies")).to_have_text(re.compile(r"\d+ studies"))

    def figure(self, name: str) -> str | None:
        """A figure of the training as it stands on the page, none if it does not."""
        found = self.page.locator(f'#training-figures [data-name="{name}"] dd')
        return found.text_content() if found.count() else None

    def versions(self) -> list[str]:
        return self.page.locator("#models tbody tr[data-version] th").all_text_contents()

    def live(self) -> str | None:
        return self.page.locator("#models tr.live").get_attribute("data-version")


@dataclass(frozen=True)
class Studies:
    """A folder of studies, the first of which are labelled, and what training on them takes."""

    folder: Path
    conf: Mapping[str, str]

    @property
    def ids(self) -> list[str]:
        return sorted(path.name.removesuffix(".nii.gz") for path in self.folder.glob("*.nii.gz"))


def hippocampi(folder: Path) -> Studies:
    source = real_data("hippocampus")
    for at, image in enumerate(sorted((source / "images").iterdir())[: LABELLED + UNLABELLED]):
        shutil.copy(image, folder)
        if at < LABELLED:
            shutil.copy(source / "labels" / image.name, folder / "labels" / "final")
    return Studies(folder, {"labels": "anterior,posterior", "data.spacing": "[2,2,2]", "data.patch_size": "[16,24,16]"})


def phantoms(folder: Path) -> Studies:
    grid = PhantomGrid((32, 26, 18), (10.0, 10.0, 13.0))
    for number in range(LABELLED + UNLABELLED):
        rng = np.random.default_rng(number)
        image, mask = render(draw_anatomy(rng), grid, rng)
        write_nifti(folder / f"phantom_{number}.nii.gz", image, grid.affine)
        if number < LABELLED:
            write_nifti(folder / "labels" / "final" / f"phantom_{number}.nii.gz", mask, grid.affine)
    return Studies(folder, {"labels": "lung,tumour"})


@pytest.fixture(
    scope="module",
    params=[phantoms, pytest.param(hippocampi, marks=[pytest.mark.data, pytest.mark.long])],
    ids=["phantoms", "hippocampi"],
)
def studies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studies:
    folder = tmp_path_factory.mktemp("studies")
    (folder / "labels" / "final").mkdir(parents=True)
    made: Studies = request.param(folder)
    return made


@pytest.fixture(scope="module")
def server(studies: Studies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dashboard")
    with serve(python_module(), str(APP), studies.folder, folder, folder, CONF | studies.conf) as running:
        yield running


@pytest.fixture(scope="module")
def trained(server: Server, chromium: Any) -> tuple[list[tuple[int, int, int]], list[dict[str, str | None]], list[str]]:
    """Trains at the press of the page's button. What was seen meanwhile: (step as told before, step on the page, step
    as told after), the figures, and the page's failures."""
    page = chromium.new_page(viewport=WIDE)
    dashboard = Dashboard(page, server)
    page.get_by_role("button", name="Start training").click()
    steps, figures, end = [], [], time.monotonic() + 300
    while time.monotonic() < end:
        before = server.get("/vqseg/training").json()["status"]
        shown = {name: dashboard.figure(name) for name in ("Step", "Loss: total", "Validation Dice", "Memory")}
        after = server.get("/vqseg/training").json()["status"]
        if before["state"] == "running" == after["state"] and shown["Step"]:
            steps.append((before["step"], int(shown["Step"].split()[0]), after["step"]))
            figures.append(shown)
        if after["state"] in ("done", "failed"):
            break
        time.sleep(0.3)
    assert server.stats()["state"] == "done"
    failures = dashboard.failures
    page.close()
    return steps, figures, failures


@pytest.fixture
def dashboard(server: Server, trained: Any, chromium: Any) -> Iterator[Dashboard]:
    page = chromium.new_page(viewport=WIDE)
    yield (dashboard := Dashboard(page, server))
    assert dashboard.failures == []
    page.close()


# --- the training ---


def test_the_numbers_move_while_it_trains_and_are_those_of_the_server(trained: Any) -> None:
    steps, figures, failures = trained
    assert failures == []
    assert len({shown for _, shown, _ in steps}) >= 5
    assert [shown for _, shown, _ in steps] == sorted(shown for _, shown, _ in steps)
    assert len({shown["Validation Dice"] for shown in figures} - {None}) >= 2
    assert any(shown["Memory"] and float(shown["Memory"].split()[0]) > 0.1 for shown in figures)
    # The page is told once a second, so it may be behind by what is trained meanwhile, and never ahead.
    assert all(shown <= after for _, shown, after in steps)
    assert all(any(told <= shown for told, _, _ in steps[: at + 1]) for at, (_, shown, _) in enumerate(steps))


def test_what_stands_at_the_end_is_what_the_server_says(dashboard: Dashboard) -> None:
    told = dashboard.server.get("/vqseg/training").json()
    status = told["status"]
    expected = {
        "Step": f"{status['total_steps']} of {status['total_steps']}",
        "Validation Dice": f"{status['validation']['dice']:.3f}",
        "Method": status["method"],
        "Labelled": str(status["labelled"]),
        "Unlabelled": str(status["unlabelled"]),
        **{f"Loss: {name.replace('_', ' ')}": f"{value:.4f}" for name, value in status["losses"].items()},
    }
    assert {name: dashboard.figure(name) for name in expected} == expected
    dashboard.page.locator("#dice-chart summary").click()
    rows = dashboard.page.locator("#dice-chart tbody tr").all()
    shown = [row.locator("td").all_text_contents()[:2] for row in rows]
    curve = told["trainings"][-1]["validations"]
    assert shown == [[str(one["step"]), f"{one['dice']:.3f}"] for one in curve]
    assert len(curve) == 5


@pytest.mark.parametrize("link", ["Report of the last training", "Report of this training"])
def test_the_report_of_a_training_opens_and_asks_for_nothing(dashboard: Dashboard, link: str) -> None:
    page = dashboard.page
    expect(page.get_by_role("link", name=link)).to_be_visible(timeout=60_000)  # it is written after the last step
    told = dashboard.server.get("/vqseg/training").json()
    with page.expect_popup() as opened:
        page.get_by_role("link", name=link).click()
    report, asked = opened.value, []
    report.on("request", lambda request: asked.append(request.url))
    report.reload()
    dice = max(one["dice"] for one in told["trainings"][-1]["validations"])
    expect(report.locator("body")).to_contain_text(f"{dice:.3f}")
    assert report.url.endswith(f"/vqseg/reports/{told['reports'][0]}")
    assert [address for address in asked if not address.startswith("data:")] == [report.url]
    # Its own page runs no scripts, and axe-core is one.
    page.set_content(requests.get(report.url, timeout=60).text)
    assert faults_of(page) == []
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
    end = time.monotonic() + 120
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


def test_the_codes_of_a_study_are_drawn_over_its_middle_slice(dashboard: Dashboard) -> None:
    page = dashboard.page
    told = dashboard.server.get("/vqseg/codebook").json()
    expect(page.locator('#codebook-figures [data-name="Codes"] dd')).to_have_text(str(told["codes"]))
    expect(page.locator('#codebook-figures [data-name="In use"] dd')).to_have_text(str(told["used"]))
    for choice in (1, 2):
        study = page.get_by_label("Codes of study").select_option(index=choice)[0]
        picture = page.get_by_role("img", name=f"Codes of the middle slice of {study}")
        expect(picture).to_be_visible()
        colours = picture.evaluate(
            """async picture => {
                await picture.decode();
                const canvas = Object.assign(document.createElement('canvas'), { width: 64, height: 64 });
                const plane = canvas.getContext('2d');
                plane.drawImage(picture, 0, 0, 64, 64);
                return [...plane.getImageData(0, 0, 64, 64).data];
            }"""
        )
        pixels = np.reshape(colours, (-1, 4))[:, :3]
        assert (np.ptp(pixels, axis=1) > 60).mean() > 0.5, "hardly any pixel is coloured"


def test_a_label_shows_up_by_itself_and_its_words_are_no_markup(dashboard: Dashboard, studies: Studies) -> None:
    image, user = studies.ids[0], "<img src=x onerror=alert(1)>"
    label = (studies.folder / "labels" / "final" / f"{image}.nii.gz").read_bytes()
    form = {"params": (None, json.dumps({"client_id": user})), "label": (f"{image}.nii.gz", label)}
    address = f"{dashboard.server.url}/datastore/label"
    answer = requests.put(address, params={"image": image}, files=form, timeout=60)
    assert answer.ok, answer.text
    latest = dashboard.page.locator("#labels tbody tr").first
    expect(latest).to_contain_text(image)
    expect(latest).to_contain_text(user)
    assert dashboard.page.locator("#labels img").count() == 0


def test_a_ranked_study_of_a_pacs_opens_in_the_viewer(pacs: RunningPACS, tmp_path: Path, chromium: Any) -> None:
    conf = {**TINY, "labels": "lung,tumour"}
    with serve(python_module(), str(APP), pacs.dicomweb, tmp_path, tmp_path, conf) as server:
        page = chromium.new_page(viewport=WIDE)
        dashboard = Dashboard(page, server)
        expect(page.locator("#ranking li a")).to_have_count(len(pacs.series))
        entry = page.locator("#ranking li").last
        series = entry.get_attribute("data-study")
        assert series in pacs.series.values()
        assert dashboard.failures == []
        viewer = Viewer(page, server.url)
        entry.get_by_role("link").click()
        viewer.wait_until_connected()
        assert viewer.shown_series() == series
        page.close()


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


# --- accounts ---


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("guarded")
    accounts = AccountFile(folder / "accounts.json")
    tokens = {role: accounts.add(role, role) for role in ROLES}
    voxels = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    write_nifti(folder / "studies" / "case.nii.gz", voxels)
    conf = {**TINY, "labels": "lung,tumour", "accounts": str(accounts.path)}
    with serve(python_module(), str(APP), folder / "studies", folder, folder, conf, token=tokens["admin"]) as running:
        yield running, tokens


def test_with_accounts_the_browser_asks_for_a_token_and_the_page_says_what_a_role_may_not(
    guarded: tuple[Server, dict[str, str]], chromium: Any
) -> None:
    server, tokens = guarded
    with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):  # a person would be asked now
        chromium.new_page().goto(f"{server.url}/vqseg/")
    credentials = {"username": "reviewer", "password": tokens["reviewer"]}
    context = chromium.new_context(viewport=WIDE, http_credentials=credentials)
    dashboard = Dashboard(context.new_page(), server)
    picture = dashboard.page.locator("#ranking li img")
    expect(picture).to_have_count(1)
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("one => one.naturalWidth") > 0
    dashboard.page.get_by_role("button", name="Start training").click()
    expect(dashboard.page.locator("#training-refusal")).to_have_text("reviewer is reviewer; this needs admin")
    assert server.stats()["state"] == "none"
    context.close()
