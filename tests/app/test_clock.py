"""A clock that is set back by a day while a server runs: what runs, what came last and who may come in stay so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from other_clock import OtherClock
from servers import APP, TINY, Server, python_module, serve

from vqseg.data.reading import read_image
from vqseg.tokens import AccountFile
from vqseg.training.status import EVENTS_FILE

DAY = 24 * 60 * 60
# In days.
SHORT = 20 / DAY
ENDLESS = {**TINY, "train.steps": "100000", "train.validate_every": "100000"}


@dataclass
class Place:
    """A server for its administrator; `guest` is a token that `expires` soon."""

    server: Server
    guest: str
    expires: float
    clock: OtherClock

    def is_let_in(self) -> bool:
        return self.server.used_with(self.guest).get("/info/").ok


@pytest.fixture
def place(tiny_studies: Path, tmp_path: Path) -> Iterator[Place]:
    accounts = AccountFile(tmp_path / "accounts.json")
    admin = accounts.add("admin", "admin")
    clock = OtherClock(tmp_path)
    conf = {**ENDLESS, "accounts": str(accounts.path)}
    with serve(
        python_module(), str(APP), tiny_studies, tmp_path, tmp_path, conf, variables=clock.variables, token=admin
    ) as server:
        guest, expires = accounts.add("guest", "user", days=SHORT), time.time() + SHORT * DAY
        yield Place(server, guest, expires, clock)


def submit(place: Place, folder: Path, seed: int) -> bytes:
    """A label of `case_04`; returns it as the server has it then."""
    grid = read_image(place.server.studies / "case_04.nii.gz").grid
    mask = np.random.default_rng(seed).integers(0, 3, grid.shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, grid.affine), folder / "label.nii.gz")
    place.server.put_label("case_04", folder / "label.nii.gz").raise_for_status()
    return place.server.get("/datastore/label", label="case_04", tag="final").content


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def until(reached: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_clock_that_is_set_back(place: Place, tmp_path: Path) -> None:
    server = place.server
    assert place.is_let_in()
    assert server.post("/train/vqseg").ok
    server.wait(lambda stats: stats["state"] == "running" and stats["step"] > 0)
    first = submit(place, tmp_path, 1)
    until(lambda: time.time() > place.expires, 2 * SHORT * DAY)
    assert not place.is_let_in()

    before = server.stats()
    place.clock.set_back(DAY)
    assert not place.is_let_in(), "an expired token is valid again"
    # A step may have been written after the look at it and before the clock was set back.
    after = server.wait(lambda stats: stats["step"] > before["step"] and stats["updated"] < before["updated"])
    assert (after["state"], after["pid"]) == ("running", before["pid"])
    assert after["elapsed_seconds"] > before["elapsed_seconds"]
    assert after["updated"] < before["updated"], "the clock was not set back"
    assert server.post("/train/vqseg").status_code == 429
    second = submit(place, tmp_path, 2)
    assert second != first
    versions = server.get("/vqseg/labels/case_04").json()["versions"]
    assert [server.get(f"/vqseg/labels/case_04/{one['version']}").content for one in versions[-2:]] == [first, second]
    assert server.delete("/train/").ok
    until(lambda: server.stats()["state"] != "running", 120)
    assert server.post("/train/vqseg").ok
    until(lambda: any(one["event"] == "resume" and one["step"] > 0 for one in read_lines(server.run / EVENTS_FILE)), 90)
    lines = read_lines(server.run / "audit.jsonl")
    told = [(line["method"], line["route"]) for line in lines if line["status"] == 200 and line["method"] != "GET"]
    train, label = "/train/{model}", "/datastore/label"
    assert told == [("POST", train), ("PUT", label), ("PUT", label), ("DELETE", "/train/"), ("POST", train)]
    assert sorted(line["time"] for line in lines) != [line["time"] for line in lines]
