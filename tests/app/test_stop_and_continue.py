"""DELETE /train kills the trainer; the next POST /train goes on where it stood."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from servers import TINY, Server

from vqseg.training.status import StatusFile, training_process


@pytest.mark.long
def test_a_killed_training_is_continued(launch: Callable[..., Any], tmp_path: Path) -> None:
    # Through MONAI Label's own launcher, from a folder that is not the repository.
    with launch(tmp_path, {"train.steps": "100000", "train.validate_every": "10"}) as server:
        assert server.post("/train/").ok
        first = server.wait(lambda stats: stats.get("step", 0) >= 20)
        second_training = server.post("/train/vqseg")
        assert second_training.status_code == 429
        assert server.delete("/train/").ok
        stopped = server.wait(lambda stats: stats["state"] == "interrupted")
        assert server.infer("case_05").ok  # what was published before stays live
        assert server.post("/train/").ok
        running = server.wait(lambda stats: stats["pid"] != first["pid"] and stats["message"] == "training")
        assert running["step"] >= stopped["step"] - 5 > 0
        assert server.delete("/train/").ok


@pytest.mark.slow
def test_a_training_that_outlived_its_server_is_shown_and_stopped_by_the_next_one(
    serve_app: Callable[..., Any], tiny_studies: Path, tmp_path: Path
) -> None:
    endless = {**TINY, "train.steps": "100000", "train.validate_every": "100000"}
    with serve_app(tiny_studies, tmp_path, endless) as first:
        assert first.post("/train/vqseg").ok
        trained = first.wait(lambda stats: stats.get("step", 0) >= 10)
        first.process.kill()
        first.process.wait(10)
    with serve_app(tiny_studies, tmp_path, endless) as second:
        assert second.stats()["pid"] == trained["pid"]
        running = second.get("/train/", check_if_running=True)
        assert running.ok
        assert running.json()["status"] == "RUNNING"
        assert [task["id"] for task in second.get("/train/", all=True).json()] == [running.json()["id"]]
        refused = second.post("/train/vqseg")
        assert refused.status_code == 409
        assert "DELETE /train/" in refused.json()["detail"]
        assert second.delete("/train/").json()["status"] == "STOPPED"
        stopped = second.stats()
        assert stopped["state"] == "interrupted"
        assert second.get("/train/", check_if_running=True).status_code == 404
        assert second.post("/train/vqseg").ok
        continued = second.wait(lambda stats: stats["pid"] != trained["pid"] and stats["message"] == "training")
        assert continued["step"] >= stopped["step"] - 5 > 0


def test_the_server_itself_is_never_the_training_that_is_stopped(app_module: Any, tmp_path: Path) -> None:
    """Here the process of the test stands for the server: the status file says that it trains."""
    StatusFile(tmp_path)
    assert training_process(tmp_path).pid == os.getpid()
    orphan = app_module("orphan").OrphanedTraining(tmp_path, "vqseg")
    assert orphan.task() is None
    assert orphan.stop() is None  # and this goes on


LABELS = {"lung": 1, "tumour": 2}


def trainer_of(app_module: Any, run: Path, labels: Mapping[str, int], **conf: str) -> Any:
    options = app_module("options").read_options({**TINY, **conf})
    return app_module("training").VQSegTraining(run, options, lambda: dict(labels))


def test_only_a_training_that_would_go_on_can_be_continued(app_module: Any, tmp_path: Path) -> None:
    trainer = trainer_of(app_module, tmp_path, LABELS)
    assert trainer.stats()["continue_with"] is None
    options = {"steps": 300, "method": "supervised"}
    trainer.keep_request({**options, "model": "vqseg", "client_id": "somebody"})
    status = StatusFile(tmp_path)
    assert trainer.stats()["continue_with"] is None, "it runs"
    status.write(state="stopped")
    assert trainer.stats()["continue_with"] == options
    same = {"score_seconds": "1", "train.steps": "7", "tracking.every": "3", "method": "vqseg"}
    assert trainer_of(app_module, tmp_path, LABELS, **same).stats()["continue_with"] == options
    others: list[tuple[dict[str, int], dict[str, str]]] = [
        ({**LABELS, "heart": 3}, {}),
        (LABELS, {"model.code_dim": "8"}),
    ]
    for labels, conf in others:
        assert trainer_of(app_module, tmp_path, labels, **conf).stats()["continue_with"] is None
    for state in ("done", "failed"):
        status.write(state=state)
        assert trainer.stats()["continue_with"] is None
    status.write(state="stopped", pid=1)
    assert trainer.stats()["continue_with"] is None, "another process trained since"


@pytest.mark.parametrize("path", ["/train/vqseg", "/train/", "/scoring/vqseg", "/scoring/", "/batch/infer/vqseg"])
def test_nothing_is_computed_within_a_request(fresh: Server, path: str) -> None:
    """Whatever pydantic takes for true."""
    for written in ("true", "1", "on"):
        refused = fresh.post(path, run_sync=written)
        assert refused.status_code == 400
        assert refused.json()["detail"].startswith("run_sync: nothing runs inside the request")
    assert fresh.stats()["state"] == "none"
    assert fresh.post("/train/nothing", run_sync="false").status_code == 404
