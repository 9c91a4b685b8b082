"""A server without a model: it starts, describes itself and says in words what is missing."""

from __future__ import annotations

from typing import Any

import pytest


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
        ({"steps": "3" * 100_000}, "larger than"),
    ],
)
def test_training_options_are_checked_before_it_starts(fresh: Any, body: dict[str, Any], words: str) -> None:
    for path, sent in (("/train/vqseg", body), ("/train/", {"vqseg": body})):
        reply = fresh.post(path, sent)
        assert reply.status_code in (400, 413)
        assert words in reply.json()["detail"]
    assert fresh.get("/train/").status_code == 404
