"""What the dashboard asks the server: training, events, codebook, pictures, labels, and its own files."""

from __future__ import annotations

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
from PIL import Image
from servers import ROOT, Server
from workplaces import RAMP, Workplace, noise

from vqseg.data.slices import reading_axis

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


def test_where_nothing_was_trained_there_is_nothing_to_tell(fresh: Server) -> None:
    told = fresh.get("/vqseg/training").json()
    assert (told["status"]["state"], told["trainings"], told["memory_bytes"]) == ("none", [], None)
    assert fresh.get("/vqseg/codebook").json()["codes"] == 0


# --- events ---


def test_events_tell_at_once_what_is_and_later_what_changes(fresh: Server) -> None:
    with events(fresh) as told:
        first = dict([next(told), next(told)])
        assert first["training"] == {"status": fresh.stats(), "memory_bytes": None}
        assert set(first["changed"]) == {"trainings", "models", "labels", "scores"}
        label = fresh.studies / "labels" / "final" / "case_00.nii.gz"
        begin = time.monotonic()
        assert fresh.put_label("case_00", label, [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]).ok
        name, changed = next(told)
        assert time.monotonic() - begin < 10
    assert name == "changed"
    assert {key for key, number in changed.items() if number != first["changed"][key]} == {"labels"}


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
        server.process.wait(20)
        assert time.monotonic() - begin < 10


# --- codebook ---


def test_the_codebook_tells_how_the_studies_looked_at_use_it(workplace: Workplace) -> None:
    describe = workplace.module("codebook_routes").describe_codebook
    workplace.add(one=RAMP, two=noise(1), three=noise(2))
    app = application(workplace)
    assert describe(app) == {
        "model_version": None, "codes": 0, "studies": 0, "used": 0, "perplexity": None, "usage": []
    }  # fmt: skip
    workplace.publish()
    assert describe(app) | {"usage": []} == {
        "model_version": "0001", "codes": 64, "studies": 0, "used": 0, "perplexity": None, "usage": []
    }  # fmt: skip
    workplace.score()
    told = describe(app)
    assert (told["studies"], told["used"]) == (3, len(told["usage"]))
    assert told["usage"] == sorted(told["usage"], reverse=True)
    assert sum(told["usage"]) == pytest.approx(1, abs=1e-6)
    assert told["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in told["usage"])), rel=1e-4)
    workplace.publish(seed=1)
    assert describe(app)["studies"] == 0, "the use of another model's codes"


def application(workplace: Workplace) -> Any:
    """What the route asks of the app."""

    class App:
        live, cache, run = workplace.live, workplace.cache, workplace.run

        def datastore(self) -> Any:
            return workplace.datastore

    return App()


# --- pictures ---


def picture(server: Server, study: str, **query: Any) -> np.ndarray:
    answer = server.get(f"/vqseg/studies/{study}/picture", **query)
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


def test_codes_are_colours_of_the_live_model(trained: Server) -> None:
    grey, coloured = picture(trained, "case_05"), picture(trained, "case_05", codes=True)
    assert coloured.shape == (*grey.shape, 3)
    assert (np.ptp(coloured, axis=-1) > 0).mean() > 0.9


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
    answer = fresh.get("/vqseg/studies/case_00/picture", codes=True)
    assert answer.status_code == 409
    assert "no trained model yet" in answer.json()["detail"]


# --- labels ---


def test_labels_are_counted_by_day_and_annotator(workplace: Workplace) -> None:
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
