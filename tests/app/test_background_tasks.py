"""Tasks of MONAI Label whose process cannot be started, or cannot be listened to."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def background(app_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MONAI Label's own tasks, none yet, which all end."""
    app_module("scoring_queue")
    utils = sys.modules["monailabel.utils.async_tasks.utils"]
    monkeypatch.setenv("PYTHONPATH", "")  # as `start_server` sets it
    monkeypatch.setattr(utils, "_task_func", utils._task_func)
    for kept in ("background_tasks", "background_processes", "background_executors"):
        monkeypatch.setattr(utils, kept, {})
    app_module("background_tasks").end_failed_tasks()
    app_module("background_tasks").end_failed_tasks()
    yield utils
    for executor in utils.background_executors.values():
        executor.shutdown()


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


class EndedError(BaseException):
    pass


def no_memory(*arguments: Any, **options: Any) -> Any:
    raise OSError(12, "Cannot allocate memory")


def test_a_scoring_that_cannot_be_started_is_an_error_and_holds_nothing_up(
    background: Any, app_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_scoring, ended = app_module("scoring_queue").queue_scoring, []
    monkeypatch.setattr(background.subprocess, "Popen", no_memory)
    first = queue_scoring("vqseg", ended=ended.append)
    wait_for(lambda: bool(ended))
    assert (first["status"], ended) == ("ERROR", [first])
    assert first["end_ts"]
    assert "Cannot allocate memory" in first["details"][0]
    assert background.processes("scoring") == {}
    assert queue_scoring("vqseg")["id"] != first["id"]


def test_whatever_comes_next_is_scored(background: Any, app_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scoring of the first state cannot be started, and a look fails; the thread that watches goes on."""
    queue, states = app_module("scoring_queue"), ["0001"]
    monkeypatch.setattr(background.subprocess, "Popen", no_memory)
    monkeypatch.setattr(queue, "_SECONDS_BETWEEN_LOOKS", 0.01)
    failures = iter([OSError(5, "Input/output error")])

    def state() -> str:
        if not states:
            raise EndedError
        for error in failures:
            raise error
        return states[-1]

    def watch() -> None:
        with contextlib.suppress(EndedError):  # it never ends otherwise
            queue.score_every_change(state, lambda: queue.queue_scoring("vqseg"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        wait_for(lambda: len(background.tasks("scoring")) == 1)
        states.append("0002")
        wait_for(lambda: len(background.tasks("scoring")) == 2)
    finally:
        states.clear()
        thread.join()


def test_a_process_whose_output_is_no_text_is_ended(background: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started, popen = [], subprocess.Popen

    def prints_no_text(command: list[str], **options: Any) -> Any:
        code = r"import sys, time; sys.stdout.buffer.write(b'\xff\n'); sys.stdout.flush(); time.sleep(60)"
        started.append(popen([sys.executable, "-c", code], **options, encoding="utf-8"))
        return started[0]

    monkeypatch.setattr(background.subprocess, "Popen", prints_no_text)
    task = background.run_background_task({}, "train")
    wait_for(lambda: task["status"] == "ERROR")
    assert "UnicodeDecodeError" in task["details"][0]
    assert background.processes("train") == {}
    assert started[0].wait(30) < 0
    started[0].stdout.close()
