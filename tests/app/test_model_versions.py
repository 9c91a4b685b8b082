"""Versions of the model: which one answers, what sets two apart, and what is said with a mask."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_nifti
from damage import flip_bit
from watched_servers import QUICK, WatchedServer, publish, serve_watched
from workplaces import LABELS, Workplace, noise

from vqseg.data.grid import Grid
from vqseg.data.reading import Volume
from vqseg.errors import ConfigError, ModelError, VQSegError

IMAGE = "case_04"
VOLUME = Volume(noise(1).astype(np.float32), Grid((16, 16, 16), np.eye(4)))
# The first knows images alone, the others segment, each in its own way.
PRETRAINED, FIRST, SECOND, THIRD = NAMES = ["0001", "0002", "0003", "0004"]


def manifest_of(number: int) -> dict[str, Any]:
    studies = [f"case_{index:02d}" for index in range(number + 1)]
    return {
        "method": "vqseg",
        "step": 10 * number,
        "created": f"2026-01-0{number}T00:00:00Z",
        "data": {"labelled": studies, "unlabelled": 7 - number, "sha256": str(number)},
        "software": {"vqseg": "0.1.0"},
        "validation": {
            "validated_on": "two studies",
            "dice": number / 10,
            "per_class": {"lung": number / 10, "tumour": None},
            "per_study": {studies[-2]: 0.1, studies[-1]: 0.2},
        },
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    folder = tmp_path_factory.mktemp("versions")
    publish(folder / "run", LABELS, QUICK, segments=False, method="self-supervised")
    for number in (1, 2, 3):
        settings = {**QUICK, "train.seed": number, "foundation.name": f"/somewhere/{number}"}
        publish(folder / "run", LABELS, settings, seed=number, **manifest_of(number))
    voxels = np.random.default_rng(0).normal(size=(28, 22, 20)).astype(np.float32)
    write_nifti(folder / "studies" / f"{IMAGE}.nii.gz", voxels, np.diag([12.0, 12, 15, 1]))
    with serve_watched(folder / "studies", folder, {"labels": ",".join(LABELS)}) as server:
        yield server


@pytest.fixture
def server(running: WatchedServer) -> WatchedServer:
    """The newest version live, whatever another test has left."""
    for name in (FIRST, SECOND, THIRD):
        running.post(f"/vqseg/models/{name}/live").raise_for_status()
    return running


def mask(server: Any, **params: Any) -> bytes:
    reply = server.infer(IMAGE, params, output="image")
    assert reply.ok, reply.text
    return bytes(reply.content)


def said(server: Any, **params: Any) -> dict[str, Any]:
    reply = server.infer(IMAGE, params, output="json")
    assert reply.ok, reply.text
    found: dict[str, Any] = json.loads(reply.text, parse_constant=pytest.fail)
    return found


def live(server: Any) -> tuple[str, str | None]:
    found = server.get("/vqseg/models").json()
    assert [one["version"] for one in found["versions"] if one["live"]] == [found["live"]]
    return found["live"], found["rollback_to"]


def test_each_version_answers_as_it_did_before(server: Any) -> None:
    newest = mask(server)
    asked = {name: mask(server, model_version=name) for name in (FIRST, SECOND, THIRD)}
    assert len(set(asked.values())) == 3
    assert mask(server) == newest == asked[THIRD]
    assert live(server) == (THIRD, SECOND)
    for name, before, then in ((SECOND, THIRD, FIRST), (FIRST, SECOND, None)):
        assert server.post("/vqseg/models/rollback").json() == {"live": name, "was": before}
        assert live(server) == (name, then)
        assert mask(server) == asked[name]
        assert said(server)["model_version"] == name
    assert mask(server, model_version=THIRD) == newest
    assert server.post(f"/vqseg/models/{THIRD}/live").json() == {"live": THIRD, "was": FIRST}
    assert mask(server) == newest


def test_what_a_panel_sends_unfilled_is_the_live_version(server: Any) -> None:
    newest = mask(server)
    assert [mask(server, model_version=given) for given in ("", "live", None)] == [newest] * 3
    assert said(server, model_version=FIRST)["model_version"] == FIRST


def test_nothing_is_there_to_go_back_to(server: Any) -> None:
    for _ in range(2):
        server.post("/vqseg/models/rollback").raise_for_status()
    refused = server.post("/vqseg/models/rollback")
    assert refused.status_code == 409
    assert "no earlier version" in refused.json()["detail"]
    assert live(server) == (FIRST, None)


@pytest.mark.parametrize("name", ["0009", "..", "x", "%2e%2e", "live", "1", "0002%00", "💥"])
def test_an_unknown_version_is_answered_with_the_known_ones(server: Any, name: str) -> None:
    replies = [
        server.get(f"/vqseg/models/{name}x"),
        server.get(f"/vqseg/models/{FIRST}/compare/{name}x"),
        server.post(f"/vqseg/models/{name}x/live"),
        server.infer(IMAGE, {"model_version": f"{name}x"}),
    ]
    for reply in replies:
        assert reply.status_code == 404, reply.text
        assert f"known: {', '.join(NAMES)}" in reply.json()["detail"]
    assert live(server) == (THIRD, SECOND)


@pytest.mark.parametrize("given", [4, ["0002"], {"a": 1}, True])
def test_a_version_that_is_no_text_is_refused(server: Any, given: Any) -> None:
    reply = server.infer(IMAGE, {"model_version": given})
    assert reply.status_code == 400
    assert "model_version" in reply.json()["detail"]


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_damaged_version_neither_answers_nor_goes_live(server: Any, file: str) -> None:
    newest, damaged = mask(server), server.run / "models" / SECOND / file
    whole = flip_bit(damaged, 5000)
    try:
        entries = {one["version"]: one["damaged"] for one in server.get("/vqseg/models").json()["versions"]}
        assert entries == {PRETRAINED: False, FIRST: False, SECOND: True, THIRD: False}
        assert server.get(f"/vqseg/models/{SECOND}").json()["damaged"]
        for reply in (server.post(f"/vqseg/models/{SECOND}/live"), server.infer(IMAGE, {"model_version": SECOND})):
            assert reply.status_code == 409, reply.text
            assert "damaged" in reply.json()["detail"]
            assert str(server.run) not in reply.text
        assert mask(server) == newest
        assert live(server) == (THIRD, FIRST)
    finally:
        damaged.write_bytes(whole)
    assert server.post(f"/vqseg/models/{SECOND}/live").json() == {"live": SECOND, "was": THIRD}
    assert said(server)["model_version"] == SECOND


def test_one_trained_on_images_alone_neither_answers_nor_goes_live(server: Any) -> None:
    for reply in (server.post(f"/vqseg/models/{PRETRAINED}/live"), server.infer(IMAGE, {"model_version": PRETRAINED})):
        assert reply.status_code == 409, reply.text
        assert "images alone" in reply.json()["detail"]
    assert live(server) == (THIRD, SECOND)


def test_the_list_says_what_the_manifests_say(server: Any) -> None:
    newest, *others, oldest = server.get("/vqseg/models").json()["versions"]
    assert newest == {
        "version": THIRD,
        "live": True,
        "created": "2026-01-03T00:00:00Z",
        "method": "vqseg",
        "step": 30,
        "dice": 0.3,
        "per_class": {"lung": 0.3, "tumour": None},
        "validated_on": "two studies",
        "labelled": 4,
        "unlabelled": 4,
        "data_sha256": "3",
        "segments": True,
        "damaged": False,
    }
    assert [one["version"] for one in others] == [SECOND, FIRST]
    assert (oldest["version"], oldest["segments"], oldest["dice"], oldest["labelled"]) == (
        PRETRAINED,
        False,
        None,
        None,
    )
    details = server.get(f"/vqseg/models/{THIRD}").json()
    assert {key: details[key] for key in newest} == newest
    assert details["per_study"] == {"case_02": 0.1, "case_03": 0.2}
    assert details["software"] == {"vqseg": "0.1.0"}
    assert details["settings"]["train"]["seed"] == 3
    # Of a file of the server its name alone.
    assert details["settings"]["foundation"]["name"] == "3"


def test_what_two_versions_differ_in(server: Any) -> None:
    assert server.get(f"/vqseg/models/{FIRST}/compare/{SECOND}").json() == {
        "method": ["vqseg", "vqseg"],
        "settings": {"train.seed": [1, 2], "foundation.name": ["1", "2"]},
        "dice": [0.1, 0.2],
        "per_class": {"lung": [0.1, 0.2], "tumour": [None, None]},
        "per_study": {"case_01": [0.2, 0.1]},
        "labelled_only_in": [[], ["case_02"]],
    }
    same = server.get(f"/vqseg/models/{THIRD}/compare/{THIRD}").json()
    assert (same["settings"], same["labelled_only_in"]) == ({}, [[], []])
    older = server.get(f"/vqseg/models/{THIRD}/compare/{PRETRAINED}").json()
    assert (older["dice"], older["per_study"]) == ([0.3, None], {})


def test_a_mask_comes_with_how_sure_and_how_long(server: Any) -> None:
    for name in (FIRST, SECOND, THIRD):
        found = said(server, model_version=name)
        assert found["label_names"] == LABELS
        assert set(found["confidence_by_structure"]) == set(LABELS)
        means = [found["confidence"], *found["confidence_by_structure"].values()]
        assert any(mean is not None for mean in means)
        assert all(mean is None or 1 / 3 <= mean <= 1 for mean in means)
        assert found["codebook_distance"] > 0
        seconds = found["latencies"]
        assert set(seconds) == {"pre", "infer", "infer_parts", "write", "total"}
        assert set(seconds["infer_parts"]) == {"prepare", "network", "restore"}
        assert sum(seconds["infer_parts"].values()) <= seconds["infer"] + 0.002 <= seconds["total"] + 0.004


def test_the_audit_log_names_the_version(server: Any) -> None:
    file = server.run / "audit.jsonl"
    before = len(file.read_text(encoding="utf-8").splitlines())
    server.post("/vqseg/models/rollback")
    server.post(f"/vqseg/models/{FIRST}/live")
    server.post("/vqseg/models/0099/live")
    server.get("/vqseg/models")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[before:]]
    assert [(line["method"], line["route"], line["version"], line["status"]) for line in lines] == [
        ("POST", "/vqseg/models/rollback", SECOND, 200),
        ("POST", "/vqseg/models/{version}/live", FIRST, 200),
        ("POST", "/vqseg/models/{version}/live", "0099", 404),
    ]


@pytest.fixture
def workplace(tmp_path: Path, app_module: Any) -> Workplace:
    """With four versions, the last one live."""
    workplace = Workplace(tmp_path, app_module)
    for seed in range(4):
        workplace.publish(seed)
    return workplace


def test_the_live_version_stays_loaded_and_one_other(workplace: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    place = workplace.live
    warm = place.predictor()
    for name in ("0001", "0001", "0004", "0002", "0002"):
        assert place.predict(VOLUME, name)[1].version == name
        assert place.predictor() is warm
    # 0001 had to go when 0002 came.
    other = place.predictor("0002")
    place.predictor("0001")
    assert place.predictor("0002") is not other
    loaded = [record.args[0] for record in caplog.records if "is loaded" in record.message]
    assert loaded == ["0004", "0001", "0002", "0001", "0002"]
    # What was asked for by name is warm when it goes live, and what was live still is.
    place.make_live("0002")
    place.predict(VOLUME)
    assert place.predictor("0004") is warm
    place.rollback()
    assert place.predictor() is warm
    assert [record.args[0] for record in caplog.records if "is loaded" in record.message] == loaded


def test_studies_are_compared_by_the_live_version_alone(workplace: Workplace, tmp_path: Path) -> None:
    workplace.add(study=noise(2))
    image = workplace.folder / "study.nii.gz"
    guard = workplace.module("memory_guard").MemoryGuard()
    task = workplace.module("inference").VQSegInference(workplace.live, workplace.cache, guard, dict)
    request = {"image": str(image), "keep_signals": True}
    for params in ({"model_version": "0002"}, {}, {"model_version": "0001"}):
        file, _ = task({**request, **params})
        Path(file).unlink()
    identity_of = workplace.module("live_model").identity_of
    of = {
        version.name: workplace.cache.signals(identity_of(version), workplace.cache.checksums.of(image))
        for version in workplace.live.store.versions()
    }
    assert [name for name, signals in of.items() if signals is not None] == ["0004"]


def test_a_training_that_publishes_goes_live_over_what_was_rolled_back(workplace: Workplace) -> None:
    assert workplace.live.rollback().name == "0003"
    workplace.publish(9)
    assert workplace.live.predict(VOLUME)[1].version == "0005"
    assert workplace.live.rollback().name == "0003"


@pytest.mark.parametrize("given", [None, "", "live"])
def test_the_live_version_has_three_names(app_module: Any, given: Any) -> None:
    assert app_module("request_rules").asked_version({"model_version": given}) is None
    assert app_module("request_rules").asked_version({}) is None


@pytest.mark.parametrize("given", [0, False, math.pi, [], {}])
def test_other_types_are_no_names(app_module: Any, given: Any) -> None:
    with pytest.raises(ConfigError, match="model_version"):
        app_module("request_rules").asked_version({"model_version": given})


def test_every_refusal_is_in_words(workplace: Workplace) -> None:
    flip_bit(workplace.run / "models" / "0002" / "model.safetensors", 5000)
    for name, error in (("0002", ModelError), ("../0003", VQSegError), ("", VQSegError)):
        with pytest.raises(error, match=r"damaged|unknown model version"):
            workplace.live.make_live(name)
        with pytest.raises(error, match=r"damaged|unknown model version"):
            workplace.live.predict(VOLUME, name)
    assert workplace.live.predict(VOLUME)[1].version == "0004"
