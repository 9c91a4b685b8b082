"""What can go wrong with a PACS, its series and the masks that annotators send: real Orthanc, real server, over REST.

Each fault is a 4xx or 502 in words, the server lives, and the mask is kept aside and named in the message.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from builders import PLANES, stored, tiny_config, tiny_network, write_dicom, write_nifti
from failing_pacs import Between, standing_before
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from running_pacs import RunningPACS, running_orthanc
from series_faults import BAD, GOOD, ORIGIN, SHAPE, SPACING, voxels
from servers import APP, Server, python_module, serve

from vqseg.store import ModelStore

pytestmark = pytest.mark.slow

LABELS = {"tumour": 1, "lung": 2}  # not in alphabetical order
NAMES = [{"name": name, "idx": value} for name, value in LABELS.items()]
# For so long the PACS may be silent: longer than /info/ waits for it.
READ_SECONDS = 4


@dataclass
class Archive(RunningPACS):
    """`late` holds slices of the series `growing` that are not there yet."""

    late: Path = Path()


@pytest.fixture(scope="module")
def archive(orthanc: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An Orthanc of its own with the series `GOOD`, of the same voxels at the same oblique place, and `BAD`."""
    folder = tmp_path_factory.mktemp("archive")
    with running_orthanc(orthanc, folder / "storage") as url:
        running = Archive(url, {}, {}, folder / "late")
        for name, make in {**GOOD, **{name: make for name, (make, _) in BAD.items()}}.items():
            source = folder / "series" / name
            write_dicom(source, voxels(), *PLANES["oblique" if name in GOOD else "axial"], SPACING, ORIGIN)
            make(source)
            running.series[name] = str(pydicom.dcmread(next(source.iterdir())).SeriesInstanceUID)
        count = sum(1 for file in (folder / "series").glob("*/*"))
        # Those that come later lie beside the folders of the series.
        running.late.mkdir()
        for index in (6, 7):
            (folder / "series" / f"late_{index}").rename(running.late / f"{index}.dcm")
        assert orthanc.load(folder / "series", running.port) == count
        yield running


@pytest.fixture(scope="module")
def between(archive: Archive) -> Iterator[Between]:
    with standing_before(archive.url) as between:
        yield between


@pytest.fixture(scope="module")
def server(between: Between, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a model of random weights, for here nobody looks at what it finds."""
    folder = tmp_path_factory.mktemp("server")
    config = tiny_config({"data.labels": LABELS, "data.spacing": (12.0, 12.0, 15.0), "data.patch_size": (16, 16, 16)})
    manifest = {"config": config.model_dump(mode="json"), "validation": {"dice": 0.5}}
    settings = [
        f"MONAI_LABEL_DICOMWEB_READ_TIMEOUT={READ_SECONDS}",
        f"MONAI_LABEL_SESSION_PATH={folder / 'sessions'}",
    ]
    command = ["env", *settings, *python_module()]
    with serve(command, str(APP), between.url, folder, folder, {"labels": ",".join(LABELS)}) as running:
        # Not before: on start the server would look at every series, and then has fetched them all.
        ModelStore(running.run / "models").publish(tiny_network(config, 3), manifest)
        yield running


@pytest.fixture(autouse=True)
def _the_server_lives(server: Server, between: Between) -> Iterator[None]:
    yield
    between.work()
    assert server.get("/info/").ok


# --- what clients do ---


def some_mask(seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)


def bare(folder: Path, mask: NDArray[np.uint8]) -> Path:
    """As OHIF sends it."""
    file = folder / "label.bin"
    file.write_bytes(mask.tobytes(order="F"))
    return file


def opened(reply: requests.Response, folder: Path) -> tuple[NDArray, NDArray[np.float64]]:
    """Voxels and affine of an answer that is a NIfTI file."""
    assert reply.ok, reply.text
    file = folder / "answer.nii.gz"
    file.write_bytes(reply.content)
    return stored(file)


def kept(server: Server, reply: requests.Response) -> Path:
    """The file in which the message says that the mask is kept."""
    found = re.search(r"kept on the server as (unsent/\S+)", reply.json()["detail"])
    assert found, reply.text
    return server.run / "pacs" / found[1]


def told(server: Server, file: Path) -> dict[str, Any]:
    return json.loads((server.run / "pacs" / "unsent.json").read_text(encoding="utf-8"))[file.name]


def kept_files(server: Server) -> set[Path]:
    return set((server.run / "pacs").glob("unsent/*"))


def look_again(server: Server, archive: Archive, folder: Path) -> None:
    """A label that was saved makes the server ask the PACS anew what it holds."""
    assert server.put_label(archive.series["plain"], bare(folder, some_mask(9)), NAMES).ok


def forget(server: Server, image: str) -> None:
    """As if nobody had fetched a series yet; a scoring in the background fetches all of them."""
    server.delete("/scoring/")
    shutil.rmtree(server.run / "pacs" / "images" / image, ignore_errors=True)


# --- series ---


@pytest.mark.parametrize("name", BAD)
def test_a_series_that_is_no_volume_is_refused_in_words_and_a_mask_drawn_on_it_is_kept(
    server: Server, archive: Archive, tmp_path: Path, name: str
) -> None:
    image, words = archive.series[name], BAD[name][1]
    reply = server.infer(image, output="image")
    assert reply.status_code == 422
    assert words in reply.json()["detail"]
    assert image in reply.json()["detail"]
    label = bare(tmp_path, some_mask())
    refused = server.put_label(image, label, NAMES)
    assert refused.status_code == 422
    assert words in refused.json()["detail"]
    file = kept(server, refused)
    assert file.suffix == ".bin"
    assert file.read_bytes() == label.read_bytes()
    assert told(server, file)["label_info"] == NAMES


def test_instance_numbers_mean_nothing(server: Server, archive: Archive, tmp_path: Path) -> None:
    """A series is the same volume, and has the same mask, with every number given twice."""
    for path in ("/datastore/image", "/infer"):
        plain, twice = (
            opened(
                server.get(path, image=archive.series[name])
                if path != "/infer"
                else server.infer(archive.series[name], output="image"),
                tmp_path,
            )
            for name in ("plain", "numbered twice")
        )
        np.testing.assert_array_equal(twice[0], plain[0])
        np.testing.assert_array_equal(twice[1], plain[1])


@pytest.mark.parametrize("name", ["enhanced CT", "enhanced MR"])
def test_frames_of_one_file_are_the_volume_that_single_files_are(
    server: Server, archive: Archive, tmp_path: Path, name: str
) -> None:
    plain, image = archive.series["plain"], archive.series[name]
    array, affine = opened(server.get("/datastore/image", image=image), tmp_path)
    np.testing.assert_array_equal(array, voxels())
    np.testing.assert_allclose(affine, opened(server.get("/datastore/image", image=plain), tmp_path)[1], atol=1e-4)
    found, place = opened(server.infer(image, output="image"), tmp_path)
    np.testing.assert_array_equal(found, opened(server.infer(plain, output="image"), tmp_path)[0])
    np.testing.assert_allclose(place, affine, atol=1e-4)
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("name", ["enhanced CT", "enhanced MR"])
def test_a_label_of_frames_comes_back_and_names_its_frames(
    server: Server, archive: Archive, tmp_path: Path, name: str
) -> None:
    image, mask = archive.series[name], some_mask()
    assert server.put_label(image, bare(tmp_path, mask), NAMES).ok
    back, _ = opened(server.get("/datastore/label", label=image, tag="final"), tmp_path)
    np.testing.assert_array_equal(back, mask)
    (segmentation,) = (
        one for one in archive.instances("SEG") if one.ReferencedSeriesSequence[0].SeriesInstanceUID == image
    )
    (source,) = (one for one in archive.instances("MR" if "MR" in name else "CT") if one.SeriesInstanceUID == image)
    frames = source.PerFrameFunctionalGroupsSequence
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        (of,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert of.ReferencedSOPInstanceUID == source.SOPInstanceUID
        place = frames[of.ReferencedFrameNumber - 1].PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(groups.PlanePositionSequence[0].ImagePositionPatient, place, atol=1e-4)
    assert server.infer(image, output="dicom_seg").headers["content-type"] == "application/dicom"


def test_a_series_that_grew_is_read_again(
    server: Server, archive: Archive, orthanc: ModuleType, tmp_path: Path
) -> None:
    """A scanner sends slices over minutes; who fetched some of them must not keep them for the whole series."""
    image = archive.series["growing"]
    array, _ = opened(server.get("/datastore/image", image=image), tmp_path)
    np.testing.assert_array_equal(array, voxels()[..., :6])
    assert orthanc.load(archive.late, archive.port) == 2
    look_again(server, archive, tmp_path)
    array, _ = opened(server.get("/datastore/image", image=image), tmp_path)
    np.testing.assert_array_equal(array, voxels())
    assert server.put_label(image, bare(tmp_path, some_mask()), NAMES).ok


def test_a_series_that_vanishes_between_choosing_and_opening(server: Server, archive: Archive, tmp_path: Path) -> None:
    image = archive.series["vanishing"]
    look_again(server, archive, tmp_path)
    assert server.get("/datastore/image/info", image=image).ok  # now it is known for seconds
    archive.delete_series(image)
    reply = server.infer(image, output="image")
    assert reply.status_code == 502
    assert image in reply.json()["detail"]
    label = bare(tmp_path, some_mask())
    refused = server.put_label(image, label, NAMES)
    assert refused.status_code == 502
    assert kept(server, refused).read_bytes() == label.read_bytes()
    look_again(server, archive, tmp_path)
    assert server.infer(image, output="image").status_code == 404
    late = server.put_label(image, label, NAMES)
    assert late.status_code == 404
    assert kept(server, late).read_bytes() == label.read_bytes()


# --- masks ---


def segmentation_of(archive: Archive, image: str, folder: Path) -> Path:
    """The label of a series as it lies in the PACS."""
    file = folder / "label.dcm"
    found = [one for one in archive.instances("SEG") if one.ReferencedSeriesSequence[0].SeriesInstanceUID == image]
    found[-1].save_as(file)
    return file


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("a row less", "voxels; the image has 1344"),
        ("unknown segment", "unknown structure 'liver'; known: tumour, lung"),
        ("segment without a name", "value 2"),
        ("grid of another series", "lies elsewhere in space"),
        ("size of another series", "is not that of the image"),
        ("SEG of another series", "the mask is that of another series"),
        ("no mask at all", "cannot be read"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_in_words_and_kept_as_it_came(
    server: Server, archive: Archive, tmp_path: Path, fault: str, words: str
) -> None:
    """Bare voxels (label.bin) of another series with as many voxels cannot be told: they say nothing but their number.
    That the mask on the screen is that of the series on the screen, the viewer has to know.
    """
    image, mask, names = archive.series["plain"], some_mask(), NAMES
    _, affine = opened(server.get("/datastore/image", image=image), tmp_path)
    label = bare(tmp_path, mask[:, 1:] if fault == "a row less" else mask)
    if fault == "unknown segment":
        names = [NAMES[0], {"name": "liver", "idx": 2}]
    elif fault == "segment without a name":
        names = NAMES[:1]
    elif fault == "grid of another series":
        moved = affine.copy()
        moved[:3, 3] += 40
        label = write_nifti(tmp_path / "label.nii.gz", mask, moved)
    elif fault == "size of another series":
        label = write_nifti(tmp_path / "label.nii.gz", mask[1:], affine)
    elif fault == "SEG of another series":
        look_again(server, archive, tmp_path)
        label = segmentation_of(archive, image, tmp_path)
        image = archive.series["numbered twice"]  # which lies at the same place
    elif fault == "no mask at all":
        label = tmp_path / "label.nii.gz"
        label.write_bytes(b"no mask at all")
    refused = server.put_label(image, label, names)
    assert refused.status_code == 422
    assert words in refused.json()["detail"]
    file = kept(server, refused)
    assert file.read_bytes() == label.read_bytes()
    assert (told(server, file)["image"], told(server, file)["label_info"]) == (image, names)
    before = kept_files(server)
    assert kept(server, server.put_label(image, label, names)) == file
    assert kept_files(server) == before


def test_of_an_empty_mask_nothing_is_kept(server: Server, archive: Archive, tmp_path: Path) -> None:
    before = kept_files(server)
    refused = server.put_label(archive.series["plain"], bare(tmp_path, np.zeros(SHAPE, np.uint8)), NAMES)
    assert refused.status_code == 422
    assert "empty" in refused.json()["detail"]
    assert kept_files(server) == before


def test_a_series_of_which_no_segmentation_can_be_made_is_named_and_the_mask_kept(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    """DICOM knows no such sex, so that no object with it can be written."""
    mask = some_mask()
    refused = server.put_label(archive.series["of nobody"], bare(tmp_path, mask), NAMES)
    assert refused.status_code == 422
    assert "no DICOM SEG of this series can be written" in refused.json()["detail"]
    np.testing.assert_array_equal(stored(kept(server, refused))[0], mask)


def test_a_foreign_segmentation_without_names_stops_nobody(
    server: Server, archive: Archive, orthanc: ModuleType, tmp_path: Path
) -> None:
    look_again(server, archive, tmp_path)
    file = segmentation_of(archive, archive.series["plain"], tmp_path)
    foreign = pydicom.dcmread(file)
    foreign.SeriesInstanceUID = generate_uid()
    foreign.SOPInstanceUID = foreign.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for segment in foreign.SegmentSequence:
        del segment.SegmentLabel
    (tmp_path / "foreign").mkdir()
    foreign.save_as(tmp_path / "foreign" / "label.dcm")
    assert orthanc.load(tmp_path / "foreign", archive.port) == 1
    try:
        look_again(server, archive, tmp_path)
        assert "error" not in server.get("/info/").json()["datastore"]
        assert server.infer(archive.series["plain"], output="image").ok
    finally:
        archive.delete_series(foreign.SeriesInstanceUID)


# --- the PACS ---


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stalling", "too slow"),
        ("gone", "does not answer"),
        ("login page", "nonsense"),
        ("broken", "could not send the series"),
        ("one image less", "7 of the 8 images"),
        ("cut short", "broke off"),
        ("cut inside", "nonsense"),
        ("cut at the end", "broke off"),
        ("broken off", "broke off"),
    ],
)
def test_a_pacs_that_fails_to_send_a_series(
    server: Server, archive: Archive, between: Between, tmp_path: Path, fault: str, words: str
) -> None:
    image, label = archive.series["far"], bare(tmp_path, some_mask())
    forget(server, image)
    between.fail(fault, rf"GET /dicom-web/studies/[\d.]+/series/{image}")
    refused = server.put_label(image, label, NAMES)
    assert refused.status_code == 502
    assert words in refused.json()["detail"]
    assert image in refused.json()["detail"]
    assert kept(server, refused).read_bytes() == label.read_bytes()
    assert not (server.run / "pacs" / "images" / image).exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [("gone", "does not answer"), ("login page", "did not confirm"), ("broken", "could not keep the label")],
)
def test_a_pacs_that_does_not_take_a_label(
    server: Server, archive: Archive, between: Between, tmp_path: Path, fault: str, words: str
) -> None:
    image, mask = archive.series["plain"], some_mask()
    _, affine = opened(server.get("/datastore/image", image=image), tmp_path)
    between.fail(fault, "^POST ")
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    refused = server.put_label(image, bare(tmp_path, mask), names)
    assert refused.status_code == 502
    assert words in refused.json()["detail"]
    file = kept(server, refused)
    np.testing.assert_array_equal(stored(file)[0], np.array([0, 2, 1], np.uint8)[mask])
    np.testing.assert_allclose(stored(file)[1], affine, atol=1e-4)
    assert told(server, file)["label_info"] == NAMES


@pytest.mark.parametrize("fault", ["cut inside", "broken off"])
def test_a_label_that_the_pacs_keeps_is_taken_though_its_answer_breaks_off(
    server: Server, archive: Archive, between: Between, tmp_path: Path, fault: str
) -> None:
    """Kept aside and sent again it would be there twice."""
    image, before, aside = archive.series["plain"], len(archive.instances("SEG")), kept_files(server)
    between.fail(fault, "^POST ")
    taken = server.put_label(image, bare(tmp_path, some_mask(6)), NAMES)
    assert taken.ok, taken.text
    between.work()
    assert len(archive.instances("SEG")) == before + 1
    assert kept_files(server) == aside
    back, _ = opened(server.get("/datastore/label", label=image, tag="final"), tmp_path)
    np.testing.assert_array_equal(back, some_mask(6))


def test_a_pacs_that_drips_is_left_with_its_client(
    server: Server, archive: Archive, between: Between, tmp_path: Path
) -> None:
    """It is never silent, so that the one place where masks are made would be held for ever."""
    far = archive.series["far"]
    forget(server, far)
    assert server.infer(archive.series["plain"], output="image").ok
    between.fail("dripping", rf"GET /dicom-web/studies/[\d.]+/series/{far}")
    with pytest.raises(requests.Timeout):
        requests.post(f"{server.url}/infer/vqseg", params={"image": far}, files={"params": (None, "{}")}, timeout=2)
    begun = time.monotonic()
    assert server.infer(archive.series["plain"], output="image").ok
    assert time.monotonic() - begun < READ_SECONDS
    assert between.hung_up.wait(READ_SECONDS)
    assert not (server.run / "pacs" / "images" / far).exists()
    between.work()
    assert server.infer(far, output="image").ok


@pytest.mark.parametrize("what", ["series", "list"])
def test_a_pacs_that_drips_has_a_limit_in_all(
    archive: Archive, between: Between, app_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    module = app_module("pacs")
    pacs = module.PACS(between.url, seconds=2.0)
    (series,) = (one for one in pacs.find(["CT"]) if one.uid == archive.series["far"])
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 2.0)
    between.fail("dripping")
    begun = time.monotonic()
    with pytest.raises(module.PACSAwayError, match="too slow"):
        pacs.fetch(series, tmp_path) if what == "series" else pacs.find(["CT"])
    assert time.monotonic() - begun < 5
    assert between.hung_up.wait(5)


@pytest.mark.parametrize(("fault", "words"), [("login page", "nonsense"), ("gone", "does not answer")])
def test_while_the_pacs_fails_work_on_what_was_fetched_goes_on(
    server: Server, archive: Archive, between: Between, tmp_path: Path, fault: str, words: str
) -> None:
    look_again(server, archive, tmp_path)
    between.fail(fault)
    reply = server.post("/activelearning/random")
    assert reply.status_code == 502
    assert words in reply.json()["detail"]
    status = server.get("/info/").json()["datastore"]
    assert words in status["error"]
    assert status["total"] > status["completed"] > 0
    assert server.infer(archive.series["plain"], output="image").ok
    refused = server.put_label(archive.series["plain"], bare(tmp_path, some_mask(4)), NAMES)
    assert refused.status_code == 502
    np.testing.assert_array_equal(stored(kept(server, refused))[0], some_mask(4))


def test_a_pacs_that_stalls_in_what_the_viewer_reads_is_given_up(
    server: Server, archive: Archive, between: Between
) -> None:
    """The viewer must not take half an answer for a whole one, and others are answered meanwhile."""
    path = f"{server.url}/proxy/dicom/qido/series?SeriesInstanceUID={archive.series['plain']}"
    whole = requests.get(path, timeout=60)
    assert whole.json()
    for fault in ("stalling", "broken off"):
        between.fail(fault, "GET /dicom-web/series")
        with ThreadPoolExecutor() as pool:
            viewer = pool.submit(requests.get, path, timeout=10 * READ_SECONDS)
            time.sleep(0.5)
            begun = time.monotonic()
            assert server.get("/info/").ok
            assert time.monotonic() - begun < READ_SECONDS
            with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
                viewer.result()
            assert time.monotonic() - begun < 3 * READ_SECONDS
        between.work()
    assert requests.get(path, timeout=60).content == whole.content


def test_a_slow_pacs_keeps_nobody_waiting_who_does_not_need_it(
    server: Server, archive: Archive, between: Between, tmp_path: Path
) -> None:
    """Nobody is answered in the event loop while somebody there waits; MONAI Label answers /info/ there."""
    look_again(server, archive, tmp_path)
    forget(server, archive.series["far"])
    between.fail("silent")
    mask = some_mask(5)
    label = bare(tmp_path, mask)
    with ThreadPoolExecutor() as pool:
        next_study = pool.submit(server.post, "/activelearning/random")
        of_cached = pool.submit(server.put_label, archive.series["plain"], label, NAMES)
        of_unknown = pool.submit(server.put_label, archive.series["far"], label, NAMES)
        time.sleep(0.3)
        assert "slow to list its series" in server.get("/info/").json()["datastore"]["error"]
        assert archive.series["plain"] in server.get("/datastore/", output="all").json()["objects"]
        assert not next_study.done()
    for reply in (next_study.result(), of_cached.result(), of_unknown.result()):
        assert reply.status_code == 502
        assert "too slow" in reply.json()["detail"]
    np.testing.assert_array_equal(stored(kept(server, of_cached.result()))[0], mask)
    assert kept(server, of_unknown.result()).read_bytes() == label.read_bytes()
    between.work()
    aside = kept(server, of_unknown.result())
    assert server.put_label(archive.series["far"], label, NAMES).ok
    assert not aside.exists()  # it has arrived: sent later once more, it would hide a newer label
    assert "error" not in server.get("/info/").json()["datastore"]


# --- images of a client's own ---


def upload(server: Server, *files: Path) -> str:
    form = [("files", (file.name, file.read_bytes())) for file in files]
    reply = requests.put(f"{server.url}/session/", files=form, timeout=60)
    assert reply.ok, reply.text
    return str(reply.json()["session_id"])


def test_an_image_of_a_session_is_segmented_where_it_lies(server: Server, archive: Archive, tmp_path: Path) -> None:
    """As NIfTI and as the files of a series, though the studies are in a PACS."""
    image = archive.series["plain"]
    array, affine = opened(server.get("/datastore/image", image=image), tmp_path)
    expected, _ = opened(server.infer(image, output="image"), tmp_path)
    nifti = write_nifti(tmp_path / "mine.nii.gz", array, affine)
    write_dicom(tmp_path / "series", voxels(), *PLANES["oblique"], SPACING, ORIGIN)
    for files in ([nifti], sorted((tmp_path / "series").iterdir())):
        found, place = opened(server.infer("", session_id=upload(server, *files), output="image"), tmp_path)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(place, affine, atol=1e-4)


def test_what_a_session_cannot_do_is_said_in_words(server: Server, tmp_path: Path) -> None:
    broken = tmp_path / "mine.nii.gz"
    broken.write_bytes(b"no image")
    session = upload(server, broken)
    reply = server.infer("", session_id=session, output="image")
    assert reply.status_code == 422
    assert "mine.nii.gz: it cannot be read" in reply.json()["detail"]
    reply = server.infer("", session_id=session, output="dicom_seg")
    assert reply.status_code == 400
    assert "only for an image of a PACS" in reply.json()["detail"]
    reply = server.infer("", session_id="none", output="image")
    assert reply.status_code == 404
    assert "unknown session 'none'" in reply.json()["detail"]
