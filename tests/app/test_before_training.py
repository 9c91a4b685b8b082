"""A server without a model: it starts, describes itself and says in words what is missing."""

from __future__ import annotations

import os
from typing import Any

import pytest
import requests

from vqseg.training.status import StatusFile


def test_info_for_the_clients(fresh: Any) -> None:
    info = fresh.get("/info/").json()
    assert info["name"] == "VQ-Seg"
    assert info["labels"] == ["lung", "tumour"]  # OHIF's panel crashes on anything but a list
    assert not info.get("config")  # Slicer rejects a server with one
    assert info["models"] == {}
    assert set(info["trainers"]) == set(info["scoring"]) == {"vqseg"}
    assert {"random", "uniform", "codebook_entropy"} <= set(info["strategies"])
    assert {"epoch", "total_epochs", "best_metric", "total_time"} <= set(info["train_stats"]["vqseg"])
    assert info["datastore"]["total"] == 6
    assert info["datastore"]["completed"] == 3


def test_idle_as_ohif_asks(fresh: Any) -> None:
    assert fresh.get("/train/", check_if_running="true").status_code == 404


def test_a_training_that_outlived_its_server_is_named(fresh: Any) -> None:
    StatusFile(fresh.run)
    try:
        for path in ("/train/vqseg", "/train/"):
            reply = fresh.post(path)
            assert reply.status_code == 409
            assert f"running already, in process {os.getpid()}:" in reply.json()["detail"]
    finally:
        (fresh.run / "status.json").unlink()


@pytest.mark.parametrize("body", ["{", '{"client_id": NaN}', '{"steps": 1e999}', '{"client_id": "\\ud800"}'])
def test_a_body_that_is_no_json_is_refused(fresh: Any, body: str) -> None:
    for path in ("/activelearning/random", "/train/vqseg"):
        reply = requests.post(fresh.url + path, body, headers={"Content-Type": "application/json"}, timeout=60)
        assert reply.status_code == 400, reply.text
        assert "body: not valid JSON" in reply.json()["detail"]


def test_a_client_without_a_name_is_known_by_its_address(fresh: Any) -> None:
    first, second = (fresh.post("/activelearning/uniform").json() for _ in range(2))
    assert first["id"] == second["id"]
    assert (
        fresh.get("/datastore/image/info", image=first["id"]).json()["strategy"]["uniform"]["client_id"] == "127.0.0.1"
    )


@pytest.mark.parametrize("output", [None, "image", "json"])
def test_no_mask_without_a_model(fresh: Any, output: str | None) -> None:
    reply = fresh.infer("case_05", **({"output": output} if output else {}))
    assert reply.status_code == 409
    assert "no trained model yet" in reply.json()["detail"]


def test_next_study_without_a_model_is_drawn_and_says_so(fresh: Any) -> None:
    for strategy in ("random", "codebook_entropy"):
        reply = fresh.post(f"/activelearning/{strategy}", {"client_id": "reader"}).json()
        assert reply["id"] in ("case_03", "case_04", "case_05")
        assert reply["strategy_used"] == "uniform"
        assert "no trained model yet" in reply["note"]
        assert reply["model_version"] is None
        assert fresh.studies / f"{reply['id']}.nii.gz" == type(fresh.studies)(reply["path"])


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/infer/nothing?image=case_05", "vqseg"),
        ("/activelearning/nothing", "codebook_entropy"),
        ("/train/nothing", "vqseg"),
        ("/scoring/nothing", "vqseg"),
        ("/batch/infer/nothing", "vqseg"),
    ],
)
def test_unknown_name_is_answered_with_the_known_ones(fresh: Any, path: str, named: str) -> None:
    reply = fresh.post(path)
    assert reply.status_code == 404
    assert "'nothing'" in reply.json()["detail"]
    assert named in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"stepz": 3}, "unknown training option 'stepz'; known options: steps, seed"),
        ({"steps": "many"}, "train.steps"),
        ({"loss.unlabelled": -1}, "loss.unlabelled"),
        ({"method": "magic"}, "unknown training method 'magic'"),
        ({"gpus": 1}, "gpus"),
        ({"tracking.to": ["/etc"]}, "tracking.to"),
        ({"foundation.name": "/etc"}, "foundation.name names files on the server; it can be given on start only"),
        ({"model.pretrained": "facebook/dinov2-small"}, "model.pretrained names files on the server"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"steps": "3" * 100_000}, "larger than"),
    ],
)
def test_training_options_are_checked_before_it_starts(fresh: Any, body: dict[str, Any], words: str) -> None:
    for path, sent in (("/train/vqseg", body), ("/train/", {"vqseg": body})):
        reply = fresh.post(path, sent)
        assert reply.status_code in (400, 413)
        assert words in reply.json()["detail"]
    assert fresh.get("/train/").status_code == 404
