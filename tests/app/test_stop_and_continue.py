"""DELETE /train kills the trainer; the next POST /train goes on where it stood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
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
