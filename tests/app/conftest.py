"""Real servers on loopback, started as a user starts them, and the app's modules for tests without a server."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests

from vqseg.data.phantom import Grid, draw_anatomy, render

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "vqseg_app"
LABELS = {"lung": 1, "tumour": 2}
GRIDS = (
    Grid((30, 24, 16), (11.0, 11.0, 15.0)),
    Grid((30, 24, 16), (11.0, 11.0, 15.0), axis=0, degrees=12.0, flips=(True, True, False)),
    Grid((28, 22, 20), (12.0, 12.0, 12.0), axis=1, degrees=-8.0),
)
# No spaces within a value: MONAI Label's launcher splits there.
TINY = {
    "train.steps": "30",
    "train.validate_every": "15",
    "train.checkpoint_every": "5",
    "train.labelled_batch": "1",
    "train.unlabelled_batch": "1",
    "model.channels": "[4,8]",
    "model.codebook_size": "32",
    "model.code_dim": "4",
    "data.patch_size": "[16,16,16]",
    "data.spacing": "[12,12,15]",
    "score_seconds": "60",
}


@dataclass
class Server:
    """A running server; `run` is the folder of its training."""

    url: str
    studies: Path
    run: Path

    def get(self, path: str, **query: Any) -> requests.Response:
        return requests.get(self.url + path, params=query, timeout=60)

    def post(self, path: str, body: Any = None, **query: Any) -> requests.Response:
        return requests.post(self.url + path, json={} if body is None else body, params=query, timeout=120)

    def delete(self, path: str) -> requests.Response:
        return requests.delete(self.url + path, timeout=60)

    def infer(self, image: str, params: Mapping[str, Any] | None = None, **query: Any) -> requests.Response:
        form = {"params": (None, json.dumps(dict(params or {})))}
        return requests.post(f"{self.url}/infer/vqseg", params={"image": image, **query}, files=form, timeout=120)

    def put_label(self, image: str, file: Path, label_info: Any = None, **query: Any) -> requests.Response:
        form = {"params": (None, json.dumps({"label_info": label_info or []})), "label": (file.name, file.read_bytes())}
        return requests.put(f"{self.url}/datastore/label", params={"image": image, **query}, files=form, timeout=60)

    def stats(self) -> dict[str, Any]:
        return self.get("/info/").json()["train_stats"]["vqseg"]

    def wait(self, done: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any]:
        """Poll the training's status until `done`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done(stats := self.stats()):
                return stats
            time.sleep(0.2)
        pytest.fail(f"not reached in {seconds} s: {self.stats()} {self.get('/train/').text}")


def python_module() -> list[str]:
    return [sys.executable, "-m", "monailabel.main"]


def launcher() -> list[str]:
    """The command that MONAI Label installs."""
    return [str(Path(sys.executable).parent / "monailabel")]


def environment() -> dict[str, str]:
    """As in an activated environment, with one thread."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MONAI_LABEL", "PYTHON"))}
    return {**inherited, "PATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def serve(
    command: list[str], app: str, studies: Path, folder: Path, cwd: Path, conf: Mapping[str, str]
) -> Iterator[Server]:
    """Start a server and wait until it answers; `folder` gets its log and its models."""
    port = free_port()
    arguments = ["start_server", "--app", app, "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    for key, value in {**conf, "model_dir": str(folder / "run")}.items():
        arguments += ["--conf", key, value]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments], cwd=cwd, env=environment(), stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", studies, folder / "run")
    try:
        end = time.monotonic() + 90
        while not answers(server):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server does not answer:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            if answers(server):
                server.delete("/train/")
                server.delete("/scoring/")
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def answers(server: Server) -> bool:
    try:
        return server.get("/info/").ok
    except requests.ConnectionError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_study(folder: Path, number: int, labelled: bool, reference: Path | None = None) -> Path:
    """One tiny phantom study, `case_NN`."""
    rng = np.random.default_rng(number)
    grid = GRIDS[number % len(GRIDS)]
    image, mask = render(draw_anatomy(rng), grid, rng)
    path = folder / f"case_{number:02d}.nii.gz"
    nib.save(nib.Nifti1Image(image, grid.affine), path)
    for place in filter(None, (folder / "labels" / "final" if labelled else None, reference)):
        place.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask, grid.affine), place / path.name)
    return path


def make_studies(folder: Path, count: int = 8, labelled: int = 3) -> Path:
    """Studies as MONAI Label keeps them; the true masks of all lie in `<folder>-reference`."""
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps(LABELS))
    for number in range(count):
        write_study(folder, number, number < labelled, folder.with_name(f"{folder.name}-reference"))
    return folder


@pytest.fixture(scope="session")
def launch() -> Callable[..., Any]:
    """Start a server of one's own in `folder`, from there and through MONAI Label's launcher."""

    @contextmanager
    def started(folder: Path, conf: Mapping[str, str]) -> Iterator[Server]:
        studies = make_studies(folder / "studies")
        with serve(launcher(), str(APP), studies, folder, folder, {**TINY, **conf}) as server:
            yield server

    return started


@pytest.fixture(scope="session")
def serve_app() -> Callable[..., Any]:
    """Start a server on `studies` of one's own, with nothing set but `conf`; `folder` gets its log and its models."""

    @contextmanager
    def started(studies: Path, folder: Path, conf: Mapping[str, str]) -> Iterator[Server]:
        with serve(python_module(), str(APP), studies, folder, folder, conf) as server:
            yield server

    return started


@pytest.fixture(scope="session")
def unusable() -> dict[str, str]:
    """Image id -> a part of the reason, of the images among the studies of `trained`."""
    return dict(UNUSABLE)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which nobody trains, started in `/` on a folder with spaces in its name."""
    folder = tmp_path_factory.mktemp("fresh")
    studies = make_studies(folder / "my chest studies", count=6)
    with serve(python_module(), str(APP), studies, folder, Path("/"), TINY) as server:
        yield server


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with unusable images and labels among the studies, started in the repository's root and trained."""
    folder = tmp_path_factory.mktemp("trained")
    studies = make_studies(folder / "studies", count=10, labelled=5)
    write_unusable_images(studies)
    final = studies / "labels" / "final"
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), final / "case_03.nii.gz")
    image = nib.load(studies / "case_04.nii.gz")
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.uint8), image.affine), final / "case_04.nii.gz")
    with serve(python_module(), "vqseg_app", studies, folder, ROOT, TINY) as server:
        assert server.post("/train/vqseg").ok
        stats = server.wait(lambda stats: stats["state"] in ("done", "failed"))
        assert stats["state"] == "done", (stats, server.get("/train/").text)
        yield server


UNUSABLE = {
    "complex": "complex",
    "corrupt": "cannot be read",
    "empty": "cannot be read",
    "four": "4 dimensions",
    "nan": "no voxel has a finite value",
    "rgb": "colour",
    "singular": "affine",
    "two": "2 dimensions",
}


def write_unusable_images(folder: Path) -> None:
    """One image for each name in `UNUSABLE`."""
    cube = np.ones((6, 6, 6), np.float32)
    arrays = {
        "complex": cube.astype(np.complex64),
        "four": np.ones((6, 6, 6, 2), np.float32),
        "nan": cube * np.nan,
        "rgb": np.zeros((6, 6, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "two": cube[0],
    }
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    whole = (folder / "four.nii.gz").read_bytes()
    (folder / "corrupt.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    singular = nib.Nifti1Image(cube, np.eye(4))
    singular.header.set_sform(np.zeros((4, 4)), code=1)
    singular.header.set_qform(None, code=0)
    (folder / "singular.nii").write_bytes(bytes(singular.header.structarr.tobytes()) + b"\0" * 4 + cube.tobytes())


@pytest.fixture(scope="session")
def app_module() -> Callable[[str], ModuleType]:
    """A module of `vqseg_app/lib`, imported under the name that MONAI Label gives it."""

    def load(name: str) -> ModuleType:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            # monailabel and what it imports are full of deprecated calls while they are imported; they are not ours.
            warnings.simplefilter("ignore")
            patch.syspath_prepend(str(APP))
            return importlib.import_module(f"lib.{name}")

    return load
