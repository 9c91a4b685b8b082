"""Real servers on loopback, started as a user starts them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "vqseg_app"
SUPPORT = ROOT / "tests" / "support"
LEAN = SUPPORT / "lean"
# For a server of `listing_app`.
LISTING = {"PYTHONPATH": f"{LEAN}{os.pathsep}{SUPPORT}"}
# A training of seconds on the phantoms. No spaces within a value: MONAI Label's launcher splits there.
TINY = {
    "train.steps": "30",
    "train.validate_every": "15",
    "train.checkpoint_every": "5",
    "train.labelled_batch": "1",
    "train.unlabelled_batch": "1",
    "model.channels": "[4,8]",
    "model.first_quantized_level": "1",
    "model.codebook_size": "32",
    "model.code_dim": "4",
    "data.patch_size": "[16,16,16]",
    "data.spacing": "[12,12,15]",
    "score_seconds": "60",
}


@dataclass
class Server:
    """A running server; `run` is the folder of its training, `process` what was started, `token` what every request
    carries."""

    url: str
    studies: Path
    run: Path
    process: subprocess.Popen[bytes]
    token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def used_with(self, token: str) -> Server:
        """The same server for another user."""
        return replace(self, token=token)

    def get(self, path: str, **query: Any) -> requests.Response:
        return requests.get(self.url + path, params=query, headers=self.headers, timeout=60)

    def post(self, path: str, body: Any = None, **query: Any) -> requests.Response:
        return requests.post(
            self.url + path, json={} if body is None else body, params=query, headers=self.headers, timeout=120
        )

    def delete(self, path: str) -> requests.Response:
        return requests.delete(self.url + path, headers=self.headers, timeout=60)

    def infer(self, image: str, params: Mapping[str, Any] | None = None, **query: Any) -> requests.Response:
        form = {"params": (None, json.dumps(dict(params or {})))}
        query = {"image": image, **query}
        return requests.post(f"{self.url}/infer/vqseg", params=query, files=form, headers=self.headers, timeout=600)

    def put_label(self, image: str, file: Path, label_info: Any = None, **query: Any) -> requests.Response:
        form = {"params": (None, json.dumps({"label_info": label_info or []})), "label": (file.name, file.read_bytes())}
        query = {"image": image, **query}
        return requests.put(f"{self.url}/datastore/label", params=query, files=form, headers=self.headers, timeout=60)

    def stats(self) -> dict[str, Any]:
        return self.get("/info/").json()["train_stats"]["vqseg"]

    def wait(self, done: Callable[[dict[str, Any]], bool], seconds: float = 600) -> dict[str, Any]:
        """Poll the training's status until `done`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done(stats := self.stats()):
                return stats
            time.sleep(0.2)
        pytest.fail(f"not reached in {seconds} s: {self.stats()} {self.get('/train/').text}")

    def wait_until_listed(self, image: str, listed: bool) -> None:
        """A server asks its PACS for the series again after some seconds."""
        end = time.monotonic() + 60
        while (image in self.get("/datastore/", output="all").json()["objects"]) != listed:
            if time.monotonic() > end:
                pytest.fail(f"{image} is {'not ' if listed else 'still '}listed")
            time.sleep(0.5)


def python_module() -> list[str]:
    return [sys.executable, "-m", "monailabel.main"]


def launcher() -> list[str]:
    """The command that MONAI Label installs."""
    return [str(Path(sys.executable).parent / "monailabel")]


def environment() -> dict[str, str]:
    """As in an activated environment, with one thread unless told otherwise; in a test without what `LEAN` hides."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MONAI_LABEL", "PYTHON"))}
    # What a script publishes is of servers as users have them.
    lean = {"PYTHONPATH": str(LEAN)} if "PYTEST_VERSION" in os.environ else {}
    return {**inherited, **lean, "PATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@contextmanager
def serve(
    command: list[str],
    app: str,
    studies: Path | str,
    folder: Path,
    cwd: Path,
    conf: Mapping[str, str],
    *,
    more: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    token: str = "",
) -> Iterator[Server]:
    """Start a server and wait until it answers to `token`; `folder` gets its log, its models and its temporary files.
    `more` arguments come last and win, as do `variables` of the environment."""
    port = free_port()
    arguments = ["start_server", "--app", app, "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    for key, value in {**conf, "model_dir": str(folder / "run")}.items():
        arguments += ["--conf", key, value]
    arguments += more
    log, temporary = folder / "server.log", folder / "tmp"
    temporary.mkdir(exist_ok=True)
    own = environment() | {"TMPDIR": str(temporary)} | dict(variables or {})
    with log.open("w") as output:
        process = subprocess.Popen([*command, *arguments], cwd=cwd, env=own, stdout=output, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", Path(studies), folder / "run", process, token)
    try:
        end = time.monotonic() + 240
        while not answers(server):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server does not answer:\n{log.read_text(encoding='utf-8')[-4000:]}")
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


def script_module(path: Path) -> ModuleType:
    """A file of Python as a module, which no package holds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(server: Server) -> bool:
    try:
        return server.get("/info/").ok
    except requests.ConnectionError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
