"""DELETE /train kills the trainer; the next POST /train goes on where it stood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import TINY


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
    endless = {**TINY, "train.steps": "100000", "train.validate_every": "10"}
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
