"""Fetching a foundation model from a hub that runs here: the whole model arrives, or nothing."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from builders import foundation_folder

from vqseg.errors import ConfigError
from vqseg.networks.foundation import FoundationModel, fetch_foundation

NAME, COMMIT = "somebody/model", "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json", "preprocessor_config.json", "model.safetensors"}


class Hub:
    """Serves the files of one model as the hub does; `torn` is a file of which only the first half arrives."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.torn = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool = True) -> None:
        path = request.path.partition("?")[0]
        if path == f"/api/models/{NAME}/revision/main":
            content = json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": f} for f in self.files]})
            self.send(request, content.encode(), body=body)
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.send(request, json.dumps(entries).encode(), body=body)
        elif path.startswith(f"/{NAME}/resolve/") and (name := path.rpartition("/")[2]) in self.files:
            self.send(request, self.files[name], body=body, torn=name == self.torn)
        else:
            request.send_error(404)

    def send(self, request: BaseHTTPRequestHandler, content: bytes, *, body: bool, torn: bool = False) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        request.end_headers()
        if body:
            request.wfile.write(content[: len(content) // 2] if torn else content)
        request.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    serving = Hub()
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.ENDPOINT", serving.url)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", serving.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    thread = threading.Thread(target=serving.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield serving
    serving.server.shutdown()
    serving.server.server_close()
    thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return foundation_folder(tmp_path / "original")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_was_fetched_is_a_foundation_model(hub: Hub, model: Path, tmp_path: Path) -> None:
    """The three files that are needed and no other."""
    hub.files = contents(model) | {"README.md": b"words", "pytorch_model.bin": b"pickled", "code.py": b"raise"}
    folder = tmp_path / "fetched" / "here"
    fetch_foundation(NAME, folder)
    assert contents(folder) == {name: hub.files[name] for name in FILES}
    fetched, original = (FoundationModel.load(str(path), torch.device("cpu")) for path in (folder, model))
    slices = torch.rand(1, 56, 56, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fetched.features(slices, 56), original.features(slices, 56), rtol=0, atol=0)


def test_a_name_of_the_hub_is_loaded_without_a_folder(hub: Hub, model: Path) -> None:
    hub.files = contents(model) | {"pytorch_model.bin": b"pickled"}
    named, original = (FoundationModel.load(name, torch.device("cpu")) for name in (NAME, str(model)))
    assert named.identity == original.identity
    slices = torch.rand(1, 56, 56, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(named.features(slices, 56), original.features(slices, 56), rtol=0, atol=0)


def test_a_folder_in_use_is_never_written_to(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.files = contents(model)
    fetch_foundation(NAME, tmp_path / "fetched")
    hub.files = hub.files | {"config.json": b"{}"}
    with pytest.raises(ConfigError, match=f"{NAME}: cannot be fetched"):
        fetch_foundation(NAME, tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == contents(model)


@pytest.mark.parametrize("missing", sorted(FILES))
def test_a_model_without_a_file_that_is_needed_leaves_nothing_behind(
    missing: str, hub: Hub, model: Path, tmp_path: Path
) -> None:
    hub.files = contents(model) | {"pytorch_model.bin": b"pickled"}
    del hub.files[missing]
    with pytest.raises(ConfigError, match=f"{NAME}: has no {missing}"):
        fetch_foundation(NAME, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_download_that_breaks_off_leaves_nothing_behind(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.files, hub.torn = contents(model), "model.safetensors"
    with pytest.raises(ConfigError, match=f"{NAME}: cannot be fetched"):
        fetch_foundation(NAME, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_name_the_hub_does_not_know_leaves_nothing_behind(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody/model: cannot be fetched"):
        fetch_foundation("nobody/model", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
