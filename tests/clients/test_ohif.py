"""The annotator's round in the real viewer: OHIF in headless Chromium, this server, and a real Orthanc behind it."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
from answers import read_nrrd, voxel_counts
from builders import edit_dicom, real_data, write_dicom, write_identified
from numpy.typing import NDArray
from ohif import SECONDS, SHOWN_SERIES, WINDOW, Mask, Viewer, assert_card_says_why
from playwright.sync_api import Route, expect
from pydicom.uid import generate_uid
from running_pacs import RunningPACS, running_orthanc
from servers import APP, Server, python_module, serve

from vqseg.data.phantom import Grid as PhantomGrid
from vqseg.data.phantom import draw_anatomy, render

pytestmark = pytest.mark.slow

LABELS = {"lung": 1, "body": 2}  # not in alphabetical order, in which the viewer numbers them
SPACING = (5.5, 5.5, 10.0)
# Enough for masks with both structures in them, on real images too.
CONF = {
    "labels": ",".join(LABELS),
    "method": "supervised",
    "train.steps": "240",
    "train.validate_every": "120",
    "train.labelled_batch": "2",
    "model.channels": "[8,16,32]",
    "model.codebook_size": "64",
    "model.code_dim": "8",
    "data.patch_size": "[32,32,16]",
    "data.spacing": "[8,8,10]",
    "score_seconds": "60",
}
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
# In which directions (LPS) the columns and rows of a series grow.
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": ((0.8, 0.6, 0), (-0.6, 0.8, 0)),
    "feet_first": ((-1, 0, 0), (0, 1, 0)),
}
# In the default run; the others take as long each.
QUICK = ("oblique",)


@dataclass
class Archive:
    """A PACS with series by name, their studies, and the masks of the phantoms, `(columns, rows, slices)`."""

    pacs: RunningPACS
    studies: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, folder: Path, orthanc: ModuleType) -> None:
        header = pydicom.dcmread(next(file for file in folder.rglob("*") if file.is_file()), stop_before_pixels=True)
        assert orthanc.load(folder, self.pacs.port) > 0
        self.pacs.series[name] = str(header.SeriesInstanceUID)
        self.studies[name] = str(header.StudyInstanceUID)


def write_phantom(folder: Path, number: int, orientation: str, study: str | None = None) -> NDArray[np.uint8]:
    """A phantom as a series with reversed instance numbers; returns its mask."""
    rng = np.random.default_rng(number)
    image, mask = render(draw_anatomy(rng), PhantomGrid((64, 52, 24), SPACING), rng)
    mask[mask != LABELS["lung"]] = 0  # at this size a tumour is a few voxels
    mask[(mask == 0) & (image > -300)] = LABELS["body"]
    row, column = ORIENTATIONS[orientation]
    write_dicom(folder, image, row, column, SPACING, origin=(-170.0, -140.0, 30.0))
    for file in folder.iterdir():
        patient = "twins" if study else f"phantom_{number}"
        edit_dicom(file, PatientID=patient, PatientName=patient, **({"StudyInstanceUID": study} if study else {}))
    return mask


@pytest.fixture(scope="module")
def archive(orthanc: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    with running_orthanc(orthanc, folder / "storage") as url:
        archive = Archive(RunningPACS(url, {}, {}))
        shared = generate_uid()
        names = ["labelled_0", "labelled_1", "labelled_2", *ORIENTATIONS, "twin_0", "twin_1", "vanishing"]
        for number, name in enumerate(names):
            orientation = name if name in ORIENTATIONS else "axial"
            study = shared if name.startswith("twin") else None
            archive.pacs.masks[name] = write_phantom(folder / name, number, orientation, study)
            archive.add(name, folder / name, orthanc)
        yield archive


@pytest.fixture(scope="module")
def untrained(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three studies are labelled, nothing is trained."""
    folder = tmp_path_factory.mktemp("server")
    with serve(python_module(), str(APP), archive.pacs.dicomweb, folder, folder, CONF) as running:
        for number in range(3):
            (folder / "label.bin").write_bytes(archive.pacs.masks[f"labelled_{number}"].tobytes(order="F"))
            names = [{"name": name, "idx": value} for name, value in LABELS.items()]
            reply = running.put_label(archive.pacs.series[f"labelled_{number}"], folder / "label.bin", names)
            assert reply.ok, reply.text
        yield running


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context(viewport=WINDOW)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def server(untrained: Server, archive: Archive, chromium: Any) -> Server:
    """Trained by the button in the viewer, which shows how far it is and then offers the model, without a reload."""
    context = chromium.new_context(viewport=WINDOW)
    viewer = Viewer(context.new_page(), untrained.url)
    viewer.open(archive.studies["axial"])
    expect(viewer.page.locator("button[title='Run Segmentation']")).to_be_disabled()
    viewer.press("Train")
    viewer.expect_message("has started")
    expect(viewer.panel.locator(".vqseg-training")).to_contain_text(
        re.compile(r"step \d+ of 240"), timeout=300 * SECONDS
    )
    expect(viewer.panel.get_by_role("button", name="Stop training")).to_be_visible()
    viewer.screenshot("training")
    expect(viewer.page.locator("button[title='Run Segmentation']")).to_be_enabled(timeout=600 * SECONDS)
    expect(viewer.panel.locator(".vqseg-training")).to_contain_text("trained, Dice", timeout=600 * SECONDS)
    assert viewer.failures == []
    context.close()
    assert untrained.stats()["state"] == "done"
    return untrained


@pytest.fixture
def viewer(server: Server, page: Any) -> Iterator[Viewer]:
    viewer = Viewer(page, server.url)
    yield viewer
    assert viewer.failures == []


def mask_of(server: Server, image: str) -> Mask:
    """The server's mask of a series as the viewer asks for it."""
    reply = server.infer(image, OHIF, output="image")
    assert reply.ok, reply.text
    header, array = read_nrrd(reply.content)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    return Mask(array, LABELS, affine)


def assert_same(shown: Mask, answered: Mask) -> None:
    """Voxel by voxel, at the same place of the patient."""
    assert np.allclose(shown.affine, answered.affine, atol=1e-3)
    assert set(shown.names) == set(LABELS)
    for name in LABELS:
        assert np.array_equal(shown.of(name), answered.of(name))


def segmentation_of(pacs: RunningPACS, series: str) -> pydicom.Dataset:
    """The one DICOM SEG of a series."""
    (found,) = [one for one in pacs.instances("SEG") if one.ReferencedSeriesSequence[0].SeriesInstanceUID == series]
    return found


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in ORIENTATIONS]
)
def test_the_overlay_is_the_servers_mask(viewer: Viewer, server: Server, archive: Archive, name: str) -> None:
    viewer.open(archive.studies[name])
    viewer.run()
    answered = mask_of(server, archive.pacs.series[name])
    assert all(answered.of(structure).any() for structure in LABELS)
    assert_same(viewer.mask(), answered)


def test_a_round_of_annotation(viewer: Viewer, server: Server, archive: Archive) -> None:
    """Run, correct, submit, train, and on to the next study."""
    pacs, series = archive.pacs, archive.pacs.series["axial"]
    labelled = {pacs.series[f"labelled_{number}"] for number in range(3)} | {series}
    viewer.open(archive.studies["axial"])
    viewer.hide_first_notice()
    viewer.run()
    corrected = viewer.brush("lung")
    viewer.panel.get_by_label("Your name").fill("Dr. Jane Roe")
    viewer.screenshot("corrected")
    viewer.press("Submit Label")
    viewer.expect_message("The label is saved.")

    stored = segmentation_of(pacs, series)
    assert voxel_counts(stored) == {name: int(corrected.of(name).sum()) for name in LABELS}
    assert stored.ContentCreatorName == "Dr. Jane Roe"
    assert stored.SegmentationType == "BINARY"

    viewer.press("Train")
    viewer.expect_message("has started")
    expect(viewer.panel.get_by_role("button", name="Stop training")).to_be_visible(timeout=180 * SECONDS)
    viewer.press("Stop training")
    viewer.expect_message("is stopped")
    expect(viewer.panel.locator(".vqseg-training")).to_contain_text("Train goes on", timeout=180 * SECONDS)

    with viewer.page.expect_response("**/activelearning/**", timeout=180 * SECONDS) as offered:
        viewer.press("Next study")
    card = viewer.panel.locator(".vqseg-next")
    expect(card).to_be_visible(timeout=180 * SECONDS)
    assert_card_says_why(card, offered.value.json())
    viewer.screenshot("next_study")
    card.get_by_role("button", name="Open").click()
    viewer.page.wait_for_url(lambda url: series not in url and "SeriesInstanceUIDs" in url)
    viewer.wait_until_connected()
    assert viewer.shown_series() not in labelled
    assert viewer.shown_series() in viewer.page.url


@pytest.mark.long
def test_train_goes_on_with_the_options_of_the_stopped_training(untrained: Server, archive: Archive, page: Any) -> None:
    options = {"steps": 100000}
    assert untrained.post("/train/vqseg", options).ok
    first = untrained.wait(lambda stats: stats["state"] == "running" and stats["total_steps"] == 100000)
    assert untrained.delete("/train/").ok
    untrained.wait(lambda stats: stats["state"] == "interrupted")
    viewer = Viewer(page, untrained.url)
    viewer.open(archive.studies["axial"])
    expect(viewer.panel.locator(".vqseg-training")).to_contain_text("Train goes on", timeout=180 * SECONDS)
    viewer.press("Train")
    viewer.expect_message("has started")
    untrained.wait(lambda stats: stats["pid"] != first["pid"] and stats["total_steps"] == 100000)
    assert untrained.delete("/train/").ok
    assert viewer.failures == []


@pytest.mark.long
def test_the_chosen_strategy_is_asked(viewer: Viewer, archive: Archive) -> None:
    viewer.open(archive.studies["labelled_0"])
    viewer.page.get_by_text("Active Learning").click()
    card = viewer.panel.locator(".vqseg-next")
    for strategy in ("uniform", "predictive_entropy"):
        viewer.page.locator(".optionsTable select").select_option(strategy)
        with viewer.page.expect_response("**/activelearning/**", timeout=180 * SECONDS) as offered:
            viewer.page.get_by_role("button", name="Next Sample").click()
        assert offered.value.url.endswith(f"/activelearning/{strategy}")
        expect(card).to_contain_text(strategy, timeout=180 * SECONDS)
        assert_card_says_why(card, offered.value.json())


@pytest.mark.long
def test_a_study_that_is_open_is_not_offered_as_the_next(viewer: Viewer, server: Server, archive: Archive) -> None:
    sample = server.post("/activelearning/random", {"client_id": "Dr. Open"}).json()
    viewer.open(sample["StudyInstanceUID"], sample["SeriesInstanceUID"])
    viewer.panel.get_by_label("Your name").fill("Dr. Open")
    viewer.press("Next study")
    viewer.expect_message("this study that should be labelled next")
    expect(viewer.panel.locator(".vqseg-next")).to_be_hidden()


@pytest.mark.long
def test_no_study_left_is_said(archive: Archive, page: Any, tmp_path: Path) -> None:
    """Others hold all that is unlabelled; a server of its own, since it remembers who holds what."""
    with serve(python_module(), str(APP), archive.pacs.dicomweb, tmp_path, tmp_path, CONF) as server:
        viewer = Viewer(page, server.url)
        viewer.open(archive.studies["oblique"])
        for number in range(len(archive.pacs.series)):
            server.post("/activelearning/random", {"client_id": f"colleague {number}"})
        viewer.page.get_by_text("Active Learning").click()
        viewer.page.get_by_role("button", name="Next Sample").click()
        viewer.expect_message("No study is left")
        assert viewer.page.get_by_text("Study Instance UID").count() == 0
        assert viewer.failures == []


def test_a_refused_label_stays_in_the_viewer(viewer: Viewer, archive: Archive) -> None:
    """Empty at first, then with a structure nobody knows: the server's words are shown, the mask stays."""
    viewer.open(archive.studies["oblique"])
    viewer.press("Submit Label")
    viewer.expect_message("empty")
    viewer.page.evaluate("window.services.segmentationService.addSegment('1', { segmentIndex: 9, label: 'liver' })")
    drawn = viewer.brush("liver")
    assert drawn.of("liver").any()
    viewer.press("Submit Label")
    viewer.expect_message("known: lung, body")
    assert np.array_equal(viewer.mask().array, drawn.array)


def test_a_mask_is_submitted_for_the_series_it_was_drawn_on(viewer: Viewer, archive: Archive) -> None:
    """Two series in one study: the model is not run into a mask of the other one."""
    pacs = archive.pacs
    viewer.open(archive.studies["twin_0"])
    drawn_on = viewer.shown_series()
    (other,) = {pacs.series["twin_0"], pacs.series["twin_1"]} - {drawn_on}
    drawn = viewer.brush("lung")
    viewer.page.evaluate(
        """other => {
            const { viewportGridService, displaySetService } = window.services;
            const [set] = displaySetService.getActiveDisplaySets().filter(it => it.SeriesInstanceUID === other);
            const viewports = [...viewportGridService.getState().viewports.keys()];
            viewportGridService.setDisplaySetsForViewports(viewports.map(viewportId => (
                { viewportId, displaySetInstanceUIDs: [set.displaySetInstanceUID] }
            )));
        }""",
        other,
    )
    viewer.page.wait_for_function(f"async other => (await ({SHOWN_SERIES})()) === other", arg=other)
    viewer.page.locator("button[title='Run Segmentation']").click()
    viewer.expect_message("another series")
    viewer.press("Submit Label")
    viewer.expect_message("The label is saved.")
    assert voxel_counts(segmentation_of(pacs, drawn_on)) == {"lung": int(drawn.of("lung").sum())}


@pytest.mark.long
def test_a_series_of_a_study_is_opened_by_its_address(viewer: Viewer, archive: Archive) -> None:
    for name in ("twin_0", "twin_1"):
        viewer.open(archive.studies[name], archive.pacs.series[name])
        assert viewer.shown_series() == archive.pacs.series[name]


def test_a_refused_run_says_why(viewer: Viewer, server: Server, archive: Archive) -> None:
    """The series vanishes from the PACS between opening it and pressing Run."""
    viewer.open(archive.studies["vanishing"])
    archive.pacs.delete_series(archive.pacs.series["vanishing"])
    server.wait_until_listed(archive.pacs.series["vanishing"], False)
    viewer.page.locator("button[title='Run Segmentation']").click()
    viewer.expect_message("unknown image")


@pytest.mark.long
def test_a_mask_outlives_its_panel(viewer: Viewer, archive: Archive) -> None:
    """The viewer removes the panel when another tab is chosen, and the panel begins anew."""
    viewer.open(archive.studies["coronal"])
    drawn = viewer.brush("lung")
    viewer.show_panel("segments")
    expect(viewer.panel).to_have_count(0)
    viewer.show_panel("label")
    viewer.wait_until_connected()
    assert np.array_equal(viewer.mask().array, drawn.array)
    assert viewer.mask().names == drawn.names
    viewer.answer_next_question(accept=True)
    viewer.run()
    assert not np.array_equal(viewer.mask().array, drawn.array)


def test_work_that_is_not_submitted_is_not_lost_without_a_question(viewer: Viewer, archive: Archive) -> None:
    viewer.open(archive.studies["labelled_1"])
    viewer.hide_first_notice()
    drawn, address = viewer.brush("body"), viewer.page.url
    viewer.press("Next study")
    run = viewer.page.locator("button[title='Run Segmentation']")
    back = viewer.page.locator("[data-cy='return-to-work-list']")
    for button in (viewer.panel.get_by_role("button", name="Open"), run, back):
        asked = viewer.answer_next_question(accept=False)
        button.click()
        assert "not submitted" in "".join(asked)
        assert viewer.page.url == address
    assert np.array_equal(viewer.mask().array, drawn.array)

    viewer.answer_next_question(accept=True)
    back.click()
    viewer.page.wait_for_url(lambda url: "StudyInstanceUIDs" not in url)
    viewer.page.get_by_text("phantom_5", exact=True).first.click()
    viewer.page.get_by_role("button", name="MONAI Label").click()
    viewer.wait_until_connected()
    assert not viewer.mask().array.any()
    expect(viewer.panel.locator(".vqseg-next")).to_be_hidden()


def test_a_run_is_given_up_when_somebody_draws_meanwhile(viewer: Viewer, archive: Archive) -> None:
    viewer.open(archive.studies["coronal"])
    viewer.page.route("**/infer/**", lambda route: None)  # the answer does not come
    viewer.page.locator("button[title='Run Segmentation']").click()
    drawn = viewer.brush("lung")
    viewer.expect_message("given up")
    assert np.array_equal(viewer.mask().array, drawn.array)


@pytest.mark.long
def test_the_viewer_connects_once_the_server_answers(viewer: Viewer, archive: Archive) -> None:
    refused: list[str] = []

    def refuse_at_first(route: Route) -> None:
        if len(refused) < 3:
            refused.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    viewer.page.route("**/info/", refuse_at_first)
    viewer.open(archive.studies["axial"])
    assert len(refused) == 3


def test_nothing_but_the_viewers_own_files_is_sent(server: Server) -> None:
    host = server.url.removeprefix("http://")
    for path in ("../../README.md", "%2e%2e/%2e%2e/README.md", "..%2f..%2fREADME.md", "nothing.js"):
        connection = http.client.HTTPConnection(host, timeout=30)  # which leaves the dots as they are
        connection.request("GET", f"/ohif/vqseg/{path}")
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        assert reply.status in (200, 404)
        assert "VQ-Seg for MONAI Label" not in text
        assert reply.status == 404 or "<!doctype html>" in text
    assert server.get("/ohif/vqseg/nothing.js").status_code == 404
    assert server.get("/ohif/assets/favicon.ico").headers["content-type"].startswith("image/")
    assert server.get("/ohif/app-config.js").text.startswith("window.config")


@pytest.mark.data
@pytest.mark.parametrize(
    "source",
    [
        "abdomen_jpeg2000",
        pytest.param("abdomen", marks=pytest.mark.long),
        pytest.param("lung_cancer_rtstruct/image", marks=pytest.mark.long),
    ],
)
def test_real_series(
    viewer: Viewer, server: Server, archive: Archive, orthanc: ModuleType, source: str, tmp_path: Path
) -> None:
    """A round on a real series: the mask that comes is the mask that is stored."""
    folder = real_data(f"ct_dicom/{source}")
    archive.add(source, write_identified(folder, tmp_path / "series") if "jpeg2000" in source else folder, orthanc)
    server.wait_until_listed(archive.pacs.series[source], True)
    viewer.open(archive.studies[source])
    viewer.hide_first_notice()
    viewer.run()
    submitted = viewer.brush("lung")
    viewer.screenshot(source.split("/")[0])
    viewer.press("Submit Label")
    viewer.expect_message("The label is saved.", 120)
    expected = {name: int(submitted.of(name).sum()) for name in LABELS if submitted.of(name).any()}
    assert voxel_counts(segmentation_of(archive.pacs, archive.pacs.series[source])) == expected
