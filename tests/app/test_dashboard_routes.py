"""What the dashboard asks the server: training, events, codebook, pictures, labels, and its own files."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import ROOT, TINY, Server
from watched_servers import QUICK, publish
from workplaces import RAMP, Workplace, noise

from vqseg.data.reading import read_image
from vqseg.data.slices import reading_axis
from vqseg.inference.code_map import map_codes
from vqseg.inference.predictor import Predictor
from vqseg.training.points import Points, read_points
from vqseg.training.status import add_event

pytestmark = pytest.mark.slow


@contextmanager
def events(server: Server) -> Iterator[Iterator[tuple[str, Any]]]:
    """The server's events, `(name, data)`, until the block ends."""
    with requests.get(f"{server.url}/vqseg/events", stream=True, headers=server.headers, timeout=30) as answer:
        assert answer.ok, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")

        def read() -> Iterator[tuple[str, Any]]:
            name = ""
            for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
                field, _, text = line.partition(": ")
                if field == "event":
                    name = text
                elif field == "data":
                    yield name, json.loads(text)

        yield read()


@pytest.fixture
def workplace(tmp_path: Path, app_module: Any) -> Workplace:
    return Workplace(tmp_path, app_module)


# --- its files ---


def test_the_page_and_all_its_files_are_served_and_may_ask_nobody_else(fresh: Server) -> None:
    page = fresh.get("/vqseg/")
    assert page.headers["content-type"].startswith("text/html")
    own = {path.name for path in (ROOT / "apps" / "dashboard").iterdir()} - {"index.html"}
    named = set(re.findall(r'(?:src|href)="dashboard/([^"]+)"', page.text))
    assert named <= own | {"plotly.min.js"}
    for name in own | named:
        answer = fresh.get(f"/vqseg/dashboard/{name}")
        assert answer.ok, name
        assert answer.headers["content-type"].startswith(("text/javascript", "text/css", "application/javascript"))
    rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'self'"
    assert not any("http" in rule or "*" in rule for rule in rules.values())


@pytest.mark.parametrize("name", ["../index.html", "..%2f..%2fREADME.md", "%2e%2e/main.py", "nothing.js", ".", "%00"])
def test_no_other_file_is_served(fresh: Server, name: str) -> None:
    session = requests.Session()
    asked = requests.Request("GET", fresh.url).prepare()
    asked.url = f"{fresh.url}/vqseg/dashboard/{name}"  # as it stands, which requests would tidy up
    assert session.send(asked, timeout=30).status_code == 404


# --- training ---


def test_the_training_is_that_of_the_information_and_its_curve_that_of_its_events(trained: Server) -> None:
    told = trained.get("/vqseg/training").json()
    assert told["status"] == trained.stats()
    assert told["memory_bytes"] is None
    lines = (trained.run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    validations = [event for line in lines if (event := json.loads(line))["event"] == "validation"]
    curve = told["trainings"][-1]["validations"]
    assert [(one["step"], one["dice"], one["losses"]) for one in curve] == [
        (event["step"], event["dice"], event["losses"]) for event in validations[-len(curve) :]
    ]
    assert curve[-1]["step"] == told["status"]["total_steps"]


def test_the_newest_training_has_its_losses_between_the_validations_too(trained: Server) -> None:
    *past, newest = trained.get("/vqseg/training").json()["trainings"]
    assert all(training["points"] == [] for training in past)
    known = [(point["step"], point["losses"]) for point in read_points(trained.run)]
    assert [(point["step"], point["losses"]) for point in newest["points"]] == known
    assert {one["step"] for one in newest["validations"]} < {step for step, _ in known}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1200), st.integers(2, 300))
def test_losses_are_thinned_evenly_from_the_first_to_the_last(app_module: Any, points: int, most: int) -> None:
    kept = app_module("training_routes").thinned(range(points), most)
    if points <= most:
        assert kept == list(range(points))
        return
    assert (len(kept), kept[0], kept[-1]) == (most, 0, points - 1)
    distances = np.diff(kept)
    assert distances.min() >= 1
    assert np.ptp(distances) <= 1


def test_no_more_losses_are_told_than_a_chart_shows(tmp_path: Path, app_module: Any) -> None:
    add_event(tmp_path, "start", step=0)
    points = Points(tmp_path, 0)
    for step in range(1, 1001):
        points.add(step, {"labelled": 1 / step}, 0.1)
    (told,) = app_module("training_routes").told_trainings(tmp_path)
    assert len(told["points"]) == 300
    assert [told["points"][at]["step"] for at in (0, -1)] == [1, 1000]
    points.add(1001, {"labelled": 0.0}, 0.1)
    (told,) = app_module("training_routes").told_trainings(tmp_path)
    assert told["points"][-1] == {"step": 1001, "losses": {"labelled": 0.0}}, "what was told before"


def test_where_nothing_was_trained_there_is_nothing_to_tell(fresh: Server) -> None:
    told = fresh.get("/vqseg/training").json()
    assert (told["status"]["state"], told["trainings"], told["memory_bytes"]) == ("none", [], None)
    assert fresh.get("/vqseg/codebook").json()["codes"] == 0


# --- events ---


def test_events_tell_at_once_what_is_and_later_what_changes(fresh: Server) -> None:
    with events(fresh) as told:
        first = dict([next(told), next(told)])
        assert first["training"] == {"status": fresh.stats(), "memory_bytes": None}
        assert set(first["changed"]) == {"trainings", "points", "models", "images", "labels", "scores"}
        label = fresh.studies / "labels" / "final" / "case_00.nii.gz"
        begin = time.monotonic()
        assert fresh.put_label("case_00", label, [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]).ok
        name, changed = next(told)
        assert time.monotonic() - begin < 10
    assert name == "changed"
    assert {key for key, number in changed.items() if number != first["changed"][key]} == {"labels"}


def test_an_image_that_comes_or_goes_is_told_as_such(
    serve_app: Callable[..., Any], tiny_studies: Path, tmp_path: Path
) -> None:
    image = (tiny_studies / "case_05.nii.gz").read_bytes()
    with serve_app(tiny_studies, tmp_path, TINY) as server, events(server) as told:
        known = dict([next(told), next(told)])["changed"]

        def wait_for_images(*others: str) -> None:
            nonlocal known
            end = time.monotonic() + 60
            changed: set[str] = set()
            while "images" not in changed:
                assert time.monotonic() < end
                name, numbers = next(told)
                if name == "changed":
                    changed = {key for key in numbers if numbers[key] != known[key]}
                    # A study that is new may be scored meanwhile.
                    assert changed <= {"images", "scores", *others}
                    known = numbers

        files = {"file": ("arrived.nii.gz", image)}
        assert requests.put(f"{server.url}/datastore/image", params={"image": "arrived"}, files=files, timeout=60).ok
        wait_for_images()
        (tiny_studies / "dropped.nii.gz").write_bytes(image)
        wait_for_images()
        assert server.delete("/datastore/image?id=case_00").ok
        wait_for_images("labels")


def test_a_page_that_is_closed_frees_its_place(fresh: Server) -> None:
    for _ in range(100):  # more than there are places
        with events(fresh) as told:
            next(told)
    assert fresh.get("/info/").ok


def test_beyond_the_places_there_is_a_503_and_the_server_works_on(fresh: Server) -> None:
    streams = []
    try:
        for _ in range(70):
            answer = requests.get(f"{fresh.url}/vqseg/events", stream=True, timeout=30)
            if answer.status_code != 200:
                break
            streams.append(answer)
        assert answer.status_code == 503
        assert "follow this server already" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0
        assert fresh.get("/info/").ok
    finally:
        for answer in streams:
            answer.close()


def test_an_open_page_does_not_keep_a_server_from_ending(launch: Callable[..., Any], tmp_path: Path) -> None:
    with launch(tmp_path, {}) as server, events(server) as told:
        next(told)
        begin = time.monotonic()
        server.process.terminate()
        server.process.wait(60)
        assert time.monotonic() - begin < 10


# --- codebook ---


def test_the_codebook_tells_how_the_studies_looked_at_use_it(workplace: Workplace) -> None:
    describe = workplace.module("codebook_routes").describe_codebook
    workplace.add(one=RAMP, two=noise(1), three=noise(2))
    app = application(workplace)
    nothing = {"studies": 0, "used": 0, "perplexity": None, "usage": [], "replacement_codes": None}
    nothing["kl_from_uniform"] = None
    assert describe(app) == {"model_version": None, "codes": 0, **nothing}
    workplace.publish()
    assert describe(app) == {"model_version": "0001", "codes": 64, **nothing}
    workplace.score()
    told = describe(app)
    assert (told["studies"], told["used"]) == (3, len(told["usage"]))
    assert told["usage"] == sorted(told["usage"], reverse=True)
    assert sum(told["usage"]) == pytest.approx(1, abs=1e-6)
    assert told["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in told["usage"])), rel=1e-4)
    workplace.publish(seed=1)
    assert describe(app)["studies"] == 0, "the use of another model's codes"


def test_all_figures_of_the_codebook_are_of_the_live_version(
    serve_app: Callable[..., Any], tiny_studies: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    told = {"0001": (4.0, 0.5), "0002": (16.0, 0.25), None: (31.0, 0.125)}
    for seed, (version, (replacement_codes, kl)) in enumerate(told.items()):
        if version:
            publish(run, {"lung": 1, "tumour": 2}, QUICK, seed)
        # The last one is a training that goes on, or whose model was not good enough.
        add_event(run, "start", step=0)
        figures = {"replacement_codes": replacement_codes, "kl_from_uniform": kl}
        add_event(run, "validation", step=10, published=version, dice=0.5, **figures)
    with serve_app(tiny_studies, tmp_path, TINY) as server:

        def shown() -> tuple[Any, ...]:
            codebook = server.get("/vqseg/codebook").json()
            return codebook["model_version"], (codebook["replacement_codes"], codebook["kl_from_uniform"])

        assert shown() == ("0002", told["0002"])
        assert server.post("/vqseg/models/rollback").ok
        assert shown() == ("0001", told["0001"])
        assert server.post("/vqseg/models/0002/live").ok
        assert shown() == ("0002", told["0002"])


def test_the_figures_of_a_version_are_those_of_the_validation_that_published_it(trained: Server) -> None:
    told = trained.get("/vqseg/codebook").json()
    trainings = trained.get("/vqseg/training").json()["trainings"]
    published = [
        one for training in trainings for one in training["validations"] if one["published"] == told["model_version"]
    ]
    assert [(one["replacement_codes"], one["kl_from_uniform"]) for one in published] == [
        (told["replacement_codes"], told["kl_from_uniform"])
    ]
    assert told["replacement_codes"] > 1


def application(workplace: Workplace) -> Any:
    """What the route asks of the app."""

    class App:
        live, cache, memory, run = workplace.live, workplace.cache, workplace.memory, workplace.run

        def datastore(self) -> Any:
            return workplace.datastore

    return App()


# --- pictures ---


def picture(server: Server, study: str) -> np.ndarray:
    answer = server.get(f"/vqseg/studies/{study}/picture")
    assert answer.ok, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_a_picture_is_the_middle_slice_with_the_proportions_of_the_body(trained: Server) -> None:
    for study in ("case_05", "case_06", "case_07"):
        image = nib.load(trained.studies / f"{study}.nii.gz")
        pixels = picture(trained, study)
        assert pixels.ndim == 2
        assert max(pixels.shape) == 256
        spacing = np.array(nib.affines.voxel_sizes(image.affine))
        sides = np.delete(np.array(image.shape) * spacing, reading_axis(tuple(spacing)))
        assert min(pixels.shape) / 256 == pytest.approx(sides.min() / sides.max(), abs=0.01)
        assert np.ptp(pixels) > 200, "no contrast"
        np.testing.assert_allclose(pixels, expected_picture(image, pixels.shape), atol=2)


def expected_picture(image: nib.Nifti1Image, shape: tuple[int, ...]) -> np.ndarray:
    """The middle slice as a radiologist sees it: up is head or face, left is the patient's right or face."""
    upright = nib.as_closest_canonical(image)
    axis = reading_axis(tuple(float(mm) for mm in nib.affines.voxel_sizes(upright.affine)))
    plane = np.take(upright.get_fdata(), upright.shape[axis] // 2, axis)
    # Both axes grow away from the corner at the top left.
    pixels = np.rot90(plane.T, 2)
    low, high = np.percentile(pixels, (1, 99))
    grey = (255 * np.clip((pixels - low) / (high - low), 0, 1)).round().astype(np.uint8)
    height, width = shape
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)).astype(float)


def coloured(server: Server, study: str) -> tuple[dict[str, Any], np.ndarray]:
    """What is told of the codes of a study, and its picture (height, width, 3)."""
    answer = server.get(f"/vqseg/studies/{study}/codes")
    assert answer.ok, answer.text
    told = answer.json()
    kind, _, content = told["picture"].partition(",")
    assert kind == "data:image/png;base64"
    return told, np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_the_codes_are_those_of_the_live_model(trained: Server) -> None:
    told, _ = coloured(trained, "case_05")
    predictor = Predictor.load(trained.run, "cpu")
    chosen = map_codes(predictor, read_image(trained.studies / "case_05.nii.gz")).codes
    assert told["model_version"] == predictor.version == trained.get("/vqseg/models").json()["live"]
    codes, counts = np.unique(chosen, return_counts=True)
    expected = dict(zip(codes.tolist(), (counts / chosen.size).tolist(), strict=True))
    assert {one["code"]: one["share"] for one in told["codes"]} == pytest.approx(expected, abs=1e-6)
    shares = [one["share"] for one in told["codes"]]
    assert shares == sorted(shares, reverse=True)


def test_the_key_has_the_colour_and_the_share_of_every_part_of_the_picture(trained: Server) -> None:
    for study in ("case_05", "case_06", "case_07"):
        told, pixels = coloured(trained, study)
        assert pixels.shape == (*picture(trained, study).shape, 3)
        # A pixel without its share of the code's colour is grey.
        colours = np.array([list(bytes.fromhex(one["colour"].removeprefix("#"))) for one in told["codes"]])
        rest = pixels[None] - 0.55 * colours[:, None, None]
        owner = np.ptp(rest, axis=-1).argmin(0)
        assert np.ptp(rest, axis=-1).min(0).max() <= 1.5, "a colour without a code"
        drawn = np.bincount(owner.ravel(), minlength=len(colours)) / owner.size
        np.testing.assert_allclose(drawn, [one["share"] for one in told["codes"]], atol=0.03)
        assert len({one["colour"] for one in told["codes"]}) == len(told["codes"]) > 1


def test_a_picture_of_what_cannot_be_shown_is_refused_in_words(
    trained: Server, fresh: Server, unusable: dict[str, str]
) -> None:
    for study, reason in unusable.items():
        answer = trained.get(f"/vqseg/studies/{study}/picture")
        assert 400 <= answer.status_code < 500, study
        assert reason in answer.json()["detail"]
        assert str(trained.studies) not in answer.text
    assert trained.get("/vqseg/studies/nobody/picture").status_code == 404
    assert trained.get("/vqseg/studies/..%2fx/picture").status_code == 404
    assert trained.get("/vqseg/studies/nobody/codes").status_code == 404
    answer = fresh.get("/vqseg/studies/case_00/codes")
    assert answer.status_code == 409
    assert "no trained model yet" in answer.json()["detail"]


# --- labels ---


def test_labels_are_counted_by_day_and_annotator(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    routes, versions = workplace.module("label_routes"), workplace.module("label_versions")
    monkeypatch.setattr(routes, "app_instance", lambda: application(workplace))
    workplace.add(one=RAMP, two=noise(1))
    assert routes.list_labels(user=None) == {"total": 0, "by_day": [], "latest": []}
    given = [
        ("one", "Ada", "2026-03-01T23:59:59.000000Z"),
        ("two", "Ben", "2026-03-02T00:00:00.000000Z"),
        ("one", "Ada", "2026-03-02T08:00:00.000000Z"),
        ("two", "Ada", "2026-03-02T09:00:00.000000Z"),
        ("one", None, "2026-03-04T09:00:00.000000Z"),
    ]
    for study, user, time_of_label in given:
        monkeypatch.setattr(versions, "utc_now", lambda now=time_of_label: now)
        workplace.label(study, np.random.default_rng(0).integers(0, 3, (16, 16, 16)), user)
    told = routes.list_labels(user=None)
    assert told["by_day"] == [
        {"day": "2026-03-01", "user": "Ada", "labels": 1},
        {"day": "2026-03-02", "user": "Ada", "labels": 2},
        {"day": "2026-03-02", "user": "Ben", "labels": 1},
        {"day": "2026-03-04", "user": "", "labels": 1},
    ]
    assert [(one["image"], one["user"], one["time"]) for one in told["latest"]] == given[::-1]


def test_every_label_version_is_listed(workplace: Workplace) -> None:
    workplace.add(one=RAMP, two=noise(1))
    for study in ("one", "two", "one"):
        workplace.label(study, np.random.default_rng(0).integers(0, 3, (16, 16, 16)))
    every = workplace.datastore.every_label_version()
    assert sorted(version.image for version in every) == ["one", "one", "two"]
    assert workplace.datastore.every_label_version() == every
    of_one = sorted((version for version in every if version.image == "one"), key=lambda version: version.version)
    assert of_one == workplace.datastore.label_versions("one")


def test_the_list_of_labels_adds_up(trained: Server) -> None:
    label = trained.studies / "labels" / "final" / "case_00.nii.gz"
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    # The first one makes a version too of the file that was there.
    assert trained.put_label("case_00", label, names).ok
    before = trained.get("/vqseg/labels").json()
    for _ in range(2):
        assert trained.put_label("case_00", label, names).ok
    told = trained.get("/vqseg/labels").json()
    assert told["total"] == before["total"] + 2 == sum(one["labels"] for one in told["by_day"])
    assert [one["time"] for one in told["latest"]] == sorted((one["time"] for one in told["latest"]), reverse=True)
    assert {one["image"] for one in told["latest"][:2]} == {"case_00"}
    assert set(told["latest"][0]) == {"image", "tag", "version", "time", "model_version", "user"}
