"""What other processes read about a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import vqseg
from vqseg.training.status import StatusFile, read_status


def test_status_is_what_was_written(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    status = StatusFile(tmp_path, step=0, message="reading")
    status.write(step=3, best_metric=0.5)
    found = read_status(tmp_path)
    assert found is not None
    assert (found["state"], found["pid"], found["step"], found["best_metric"]) == ("running", os.getpid(), 3, 0.5)
    assert found["updated"] >= found["started"]
    assert found["elapsed_seconds"] >= 0
    status.write(state="done")
    assert (read_status(tmp_path) or {})["state"] == "done"


def test_running_becomes_interrupted_when_its_process_is_gone(tmp_path: Path) -> None:
    code = "import sys, pathlib; from vqseg.training.status import StatusFile; StatusFile(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; print('written', flush=True); input()", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(vqseg.__file__).parents[1])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert (read_status(tmp_path) or {})["state"] == "running"
        process.kill()
        while (read_status(tmp_path) or {})["state"] == "running":  # a moment, until the kernel has ended it
            pass
        # It is a zombie until its parent asks for it, and gone afterwards.
        assert process.returncode is None
        process.wait()
        assert (read_status(tmp_path) or {})["state"] == "interrupted"


def test_a_process_that_got_the_id_of_a_dead_one_is_another(tmp_path: Path) -> None:
    status = StatusFile(tmp_path)
    assert (read_status(tmp_path) or {})["state"] == "running"
    status.write(process_started=status.fields["process_started"] - 10)
    assert (read_status(tmp_path) or {})["state"] == "interrupted"
    status.write(state="failed")
    assert (read_status(tmp_path) or {})["state"] == "failed"


@pytest.mark.skipif(sys.platform != "linux", reason="the clock is set where psutil reads it on Linux")
@pytest.mark.parametrize("seconds", [-86400, -10, 10, 86400])
def test_a_training_runs_also_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    status, booted, now = StatusFile(tmp_path), psutil.boot_time(), time.time()
    # What Linux says of its start follows the clock.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + seconds)
    monkeypatch.setattr(time, "time", lambda: now + seconds)
    status.write()
    found = read_status(tmp_path) or {}
    assert found["state"] == "running"
    assert 0 <= found["elapsed_seconds"] < 60


@pytest.mark.parametrize("pid", [0, -1])
def test_impossible_process_is_not_running(pid: int, tmp_path: Path) -> None:
    StatusFile(tmp_path, pid=pid)
    assert (read_status(tmp_path) or {})["state"] == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_status_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text, encoding="utf-8")
    assert read_status(tmp_path) is None


def test_events_are_lines_that_add_up(tmp_path: Path) -> None:
    status = StatusFile(tmp_path)
    status.event("start", step=0)
    StatusFile(tmp_path).event("validation", dice=0.5, words='two\nlines and "quotes"')
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["start", "validation"]
    assert lines[0]["time"] <= lines[1]["time"]
