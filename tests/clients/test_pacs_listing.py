"""What a PACS holds, as those see it who cannot wait for it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest


class LateArchive:
    """Lists nothing before it is released; counts how often it is asked."""

    url = "http://late"

    def __init__(self) -> None:
        self.asked, self.released = 0, threading.Event()

    def find(self, modalities: Any) -> list[Any]:
        self.asked += 1
        self.released.wait(10)
        return []


@pytest.fixture
def listing(app_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = app_module("pacs_listing")
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.05)
    return module


def test_an_answer_that_nobody_waited_for_is_there_for_the_next(listing: Any, app_module: Any) -> None:
    archive = LateArchive()
    held = listing.PACSListing(archive, ("CT",))
    for _ in range(3):
        with pytest.raises(app_module("pacs").PACSError, match="slow"):
            held.now(hurry=True)
    assert archive.asked == 1
    archive.released.set()
    end = time.monotonic() + 60
    while held.last is None and time.monotonic() < end:
        time.sleep(0.01)
    assert held.now(hurry=True) is held.last


def test_a_former_answer_does_not_replace_a_later_one(listing: Any) -> None:
    archive = LateArchive()
    held = listing.PACSListing(archive, ("CT",))
    former = threading.Thread(target=held.now)
    former.start()
    while not archive.asked:
        time.sleep(0.01)
    held.forget()
    blocked, archive.released = archive.released, threading.Event()
    archive.released.set()
    later = held.now()
    assert held.last is later
    blocked.set()
    former.join(10)
    assert held.last is later
