"""A disk that is full and a folder that may not be written: said in words, and nothing that was there is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from servers import python_module
from watched_servers import WatchedServer

from vqseg.data.reading import read_image

FREE = psutil.RLIM_INFINITY
FULL = "the disk of the server is full"
CLOSED = "Permission denied"


def some_label(folder: Path, server: WatchedServer, study: str, seed: int) -> Path:
    grid = read_image(server.studies / f"{study}.nii.gz").grid
    mask = np.random.default_rng(seed).integers(0, 3, grid.shape).astype(np.uint8)
    file = folder / f"label{seed}.nii.gz"
    nib.save(nib.Nifti1Image(mask, grid.affine), file)
    return file


def some_image(folder: Path) -> bytes:
    voxels = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "image.nii.gz")
    return (folder / "image.nii.gz").read_bytes()


def state_of(server: WatchedServer, study: str) -> tuple[Any, ...]:
    """What a client sees of the studies: the list, a label and its versions."""
    label = server.get("/datastore/label", label=study, tag="final")
    return server.get("/datastore/", output="all").json(), label.content, server.get(f"/vqseg/labels/{study}").json()


def writes(server: WatchedServer, label: Path, image: bytes) -> dict[str, Callable[[], requests.Response]]:
    def put(path: str, **more: Any) -> requests.Response:
        return requests.put(server.url + path, timeout=60, **more)

    file, details = ("image.nii.gz", image), json.dumps({"a": "b" * 9000})
    return {
        "a label": lambda: server.put_label("case_04", label),
        "an image": lambda: put("/datastore/?image=new", files={"file": file}),
        "what is known of an image": lambda: put("/datastore/image/info?image=case_04", data={"info": details}),
        "a session": lambda: put("/session/", files={"files": file}),
        "an image to be segmented": lambda: requests.post(
            f"{server.url}/infer/vqseg", files={"file": file}, timeout=60
        ),
        "the end of an image": lambda: server.delete("/datastore/?id=case_03"),
    }


@pytest.fixture(scope="module")
def server(watch: Callable[..., Any]) -> Iterator[WatchedServer]:
    # Even root needs the permission that it gave itself, when it is no longer above permissions.
    prefix = [] if os.geteuid() else ["setpriv", "--bounding-set", "-dac_override", "--"]
    if prefix and not shutil.which(prefix[0]):
        pytest.skip("root may write everything, and setpriv (util-linux), which could take that away, is not here")
    with watch({"data.spacing": [12, 12, 15]}, {}, [*prefix, *python_module()]) as started:
        yield started


def test_a_full_disk_loses_nothing(server: WatchedServer, tmp_path: Path) -> None:
    first, second = (some_label(tmp_path, server, "case_04", seed) for seed in (0, 1))
    assert server.put_label("case_04", first).ok
    before, image = state_of(server, "case_04"), some_image(tmp_path)
    asked = writes(server, second, image)
    del asked["the end of an image"]  # which makes room
    # As a full disk: no file may be longer, for the server's process alone.
    server.running.rlimit(psutil.RLIMIT_FSIZE, (2048, FREE))
    try:
        with server.leaving_nothing():
            for what, ask in asked.items():
                answer = ask()
                assert (answer.status_code, FULL in answer.text) == (507, True), f"{what}: {answer.text}"
        assert server.infer("case_04", output="image").ok
        assert server.get("/info/").ok
        listed, label, versions = state_of(server, "case_04")
        assert (listed, label) == before[:2]
        assert versions["versions"][: len(before[2]["versions"])] == before[2]["versions"]
    finally:
        server.running.rlimit(psutil.RLIMIT_FSIZE, (FREE, FREE))
    assert server.put_label("case_04", second).ok
    assert state_of(server, "case_04")[1] != before[1]


def test_a_folder_that_may_not_be_written_loses_nothing(server: WatchedServer, tmp_path: Path) -> None:
    first, second = (some_label(tmp_path, server, "case_04", seed) for seed in (2, 3))
    assert server.put_label("case_04", first).ok
    before = state_of(server, "case_04")
    asked = writes(server, second, some_image(tmp_path))
    elsewhere = {"a session", "an image to be segmented"}
    folders = [server.studies, *(path for path in server.studies.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with server.leaving_nothing():
            for what, ask in asked.items():
                answer = ask()
                if what not in elsewhere:
                    assert (answer.status_code, CLOSED in answer.text) == (507, True), f"{what}: {answer.text}"
        assert server.infer("case_04", output="image").ok
        assert server.post("/activelearning/random").ok
        assert state_of(server, "case_04") == before
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert server.put_label("case_04", second).ok
    assert state_of(server, "case_04")[1] != before[1]
