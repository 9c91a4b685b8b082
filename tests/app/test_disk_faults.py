"""A disk that is full and a folder that may not be written: said in words, and nothing that was there is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from servers import APP, TINY, environment, free_port, python_module, serve
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
def obedient() -> list[str]:
    """What a command begins with that heeds permissions."""
    # Even root needs the permission that it gave itself, when it is no longer above permissions.
    prefix = [] if os.geteuid() else ["setpriv", "--bounding-set", "-dac_override", "--"]
    if prefix and not shutil.which(prefix[0]):
        pytest.skip("root may write everything, and setpriv (util-linux), which could take that away, is not here")
    return prefix


@pytest.fixture(scope="module")
def server(watch: Callable[..., Any], obedient: list[str]) -> Iterator[WatchedServer]:
    with watch({"data.spacing": [12, 12, 15]}, {}, [*obedient, *python_module()]) as started:
        yield started


@contextmanager
def closed(*tops: Path) -> Iterator[None]:
    """Nobody may write to the folders, nor to those in them."""
    folders = [folder for top in tops for folder in (top, *(path for path in top.rglob("*") if path.is_dir()))]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


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
    with closed(server.studies):
        with server.leaving_nothing():
            for what, ask in asked.items():
                answer = ask()
                if what not in elsewhere:
                    assert (answer.status_code, CLOSED in answer.text) == (507, True), f"{what}: {answer.text}"
        assert server.infer("case_04", output="image").ok
        assert server.post("/activelearning/random").ok
        assert state_of(server, "case_04") == before
    assert server.put_label("case_04", second).ok
    assert state_of(server, "case_04")[1] != before[1]


def run(command: list[Any], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, encoding="utf-8", timeout=120, check=False
    )


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_server_does_not_start_on_studies_that_may_not_be_written(
    obedient: list[str], tiny_studies: Path, tmp_path: Path
) -> None:
    before, here = content_of(tiny_studies), ["--host", "127.0.0.1", "--port", free_port()]
    start = ["start_server", "--app", APP, "--studies", tiny_studies, *here, "--conf", "model_dir", tmp_path / "run"]
    with closed(tiny_studies):
        made = run([*map(str, [*obedient, *python_module(), *start])], tmp_path)
    said = made.stdout + made.stderr
    assert made.returncode == 2, said
    assert f"vqseg: {tiny_studies / '.vqseg'}: {CLOSED}" in said
    assert "Traceback" not in said
    assert content_of(tiny_studies) == before


def test_a_training_says_that_it_cannot_write_to_its_folder(
    obedient: list[str], tiny_studies: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept" / "run"
    folder.mkdir(parents=True)
    training = ["train", "--images", tiny_studies, "--labels", tiny_studies / "labels" / "final", "--steps", 2]
    with closed(folder.parent):
        for out in (folder, folder.parent / "new" / "run"):
            made = run([*map(str, [*obedient, sys.executable, "-m", "vqseg", *training, "--out", out])], tmp_path)
            assert made.returncode == 1, made.stderr
            assert made.stderr == (
                f"Error: {out}: a training cannot write there ({CLOSED}); mend that, or choose another folder\n"
            )
    assert content_of(folder.parent) == {folder: None}


@pytest.mark.long
def test_a_training_of_a_server_says_so_too(obedient: list[str], tiny_studies: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    command = [*obedient, *python_module()]
    with closed(tmp_path / "run"), serve(command, str(APP), tiny_studies, tmp_path, tmp_path, TINY) as started:
        assert started.post("/train/vqseg").ok
        end = time.monotonic() + 300
        while (task := started.get("/train/").json())["status"] not in ("DONE", "ERROR") and time.monotonic() < end:
            time.sleep(0.5)
        assert task["status"] == "ERROR"
        assert any("a training cannot write there" in line for line in task["details"])
        assert started.get("/info/").ok
        assert "Traceback" not in (tmp_path / "server.log").read_text(encoding="utf-8")
    assert content_of(tmp_path / "run") == {}
