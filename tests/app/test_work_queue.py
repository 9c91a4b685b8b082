"""Many clients ask for masks or studies at once: the server answers all else, and says when it is full."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from watched_servers import QUICK, SLOW, WatchedServer, publish

STUDY = "case_04"
TOO_LATE = "it was not its turn within 8 s: try again later"


def ask(server: WatchedServer, seconds: float = 300) -> requests.Response:
    return requests.post(f"{server.url}/infer/vqseg", params={"image": STUDY, "output": "image"}, timeout=seconds)


def ask_for_a_study(server: WatchedServer) -> requests.Response:
    return requests.post(f"{server.url}/activelearning/perturbation", json={}, timeout=120)


def leave(server: WatchedServer, seconds: float) -> None:
    """Ask for a mask, and go away after so many seconds without an answer."""
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask(server, seconds)


def is_idle(server: WatchedServer, seconds: float) -> bool:
    """Whether the server stops computing within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.running.cpu_percent(1.0) < 5:
            return True
    return False


@pytest.fixture(scope="module")
def quick(watch: Callable[..., Any]) -> Iterator[WatchedServer]:
    with watch(QUICK, {"infer_waiting": "19"}) as server:
        yield server


@pytest.fixture(scope="module")
def slow(watch: Callable[..., Any]) -> Iterator[WatchedServer]:
    """A server whose inferences take long, and of which one may wait."""
    with watch(QUICK, {"infer_waiting": "1", "infer_seconds": "8"}) as server:
        publish(server.run, {"lung": 1, "tumour": 2}, SLOW)
        yield server


def test_twenty_at_once_get_the_mask_of_one(quick: WatchedServer) -> None:
    alone, waits = ask(quick), []
    with quick.leaving_nothing(), ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, quick) for _ in range(20)]
        while not all(job.done() for job in asked):
            started = time.monotonic()
            assert quick.get("/info/").ok
            waits.append(time.monotonic() - started)
    assert {job.result().status_code for job in asked} == {200}
    assert {job.result().content for job in asked} == {alone.content}
    assert max(waits) < 5


@pytest.mark.parametrize(
    ("kind", "work"), [("inference", ask), pytest.param("selection", ask_for_a_study, marks=pytest.mark.long)]
)
def test_more_than_there_are_threads_do_not_keep_the_server_from_answering(
    slow: WatchedServer, kind: str, work: Callable[[WatchedServer], requests.Response]
) -> None:
    """starlette's pool has 40."""
    assert is_idle(slow, 20)
    with slow.leaving_nothing(), ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(work, slow) for _ in range(60)]
        time.sleep(3)
        started = time.monotonic()
        assert slow.get("/info/").ok
        assert slow.get("/datastore/").ok
        assert time.monotonic() - started < 5
    replies = [job.result() for job in asked]
    full = [reply for reply in replies if "are waiting already" in reply.text]
    assert len(full) == 58
    assert {reply.status_code for reply in full} == {503}
    assert all(int(reply.headers["Retry-After"]) > 0 for reply in full)
    # The one that ran, and the one that waited, unless the first one's end came just before its own.
    late = {(reply.status_code, reply.json()["detail"]) for reply in replies if reply not in full}
    ran, waited = (504, f"the {kind} was ended after 8 s (--conf infer_seconds)"), (503, TOO_LATE)
    assert {ran} <= late <= {ran, waited}
    # What was ended gave its place back, and so did what waited: both can be taken again at once.
    assert is_idle(slow, 10)
    with ThreadPoolExecutor(2) as pool:
        for again in [pool.submit(ask, slow) for _ in range(2)]:
            assert again.result().status_code in (503, 504)
            assert "are waiting already" not in again.result().text


def test_who_leaves_stops_the_inference_and_frees_the_place(slow: WatchedServer) -> None:
    assert is_idle(slow, 10)
    with slow.leaving_nothing():
        leavers = [threading.Thread(target=leave, args=(slow, 3)) for _ in range(2)]
        for leaver in leavers:
            leaver.start()
        time.sleep(1.5)
        assert ask(slow).status_code == 503  # both places are taken
        for leaver in leavers:
            leaver.join()
        # Before the 8 seconds that either would have been given.
        assert is_idle(slow, 5)
        leave(slow, 2)  # neither refused nor answered: there was a place


def test_an_image_sent_by_who_leaves_is_removed(slow: WatchedServer) -> None:
    content = (slow.studies / f"{STUDY}.nii.gz").read_bytes()
    with slow.leaving_nothing():
        for _ in range(2):
            with pytest.raises(requests.exceptions.ReadTimeout):
                requests.post(f"{slow.url}/infer/vqseg", files={"file": ("a.nii.gz", content)}, timeout=2)


def test_wrong_requests_are_answered_while_the_line_is_full(slow: WatchedServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(leave, slow, 3)
        time.sleep(1)
        assert slow.infer("case_99").status_code == 404
        assert slow.infer(STUDY, {}, output="nothing").status_code == 422
