"""What a client sends is bounded by its length, by what it unpacks to and by memory; nothing of it is left behind."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from watched_servers import QUICK, WatchedServer

from vqseg.data.header import read_declared
from vqseg.errors import ConfigError, ImageError

MIB = 2**20
STUDY = "case_04"
# As much as a large CT, in a file of some kilobytes.
BOMB_SHAPE = (512, 512, 8192)
LIMITS = {"upload_gib": "0.004", "upload_megavoxels": "1000", "upload_unpacked_gib": "2", "infer_memory_gib": "0.5"}


def header(shape: tuple[int, ...], dtype: type = np.int16, offset: float = 352, extension: bytes = b"") -> bytes:
    """A NIfTI-1 header as no library would write it."""
    made = nib.Nifti1Header()
    made.set_data_dtype(dtype)
    made.set_data_shape(shape)
    made.set_sform(np.eye(4), code=1)
    made["vox_offset"], made["magic"] = offset, b"n+1"
    return made.structarr.tobytes() + (b"\1\0\0\0" if extension or offset != 352 else b"\0" * 4) + extension


def claim(size: int) -> bytes:
    """The beginning of an extension that says it is so long."""
    return np.array([size, 4], np.int32).tobytes() + b"x" * 64


BOMBS = {
    "many voxels": header(BOMB_SHAPE),
    "more than memory": header((600, 600, 600)),
    "negative shape": header((-512, 512, 8192)),
    "extension of 2 GB": header((8, 8, 8), offset=448, extension=claim(2**31 - 16)),
    "extension to the end": header((8, 8, 8), offset=448, extension=claim(0)),
    "no end of extensions": header((8, 8, 8), offset=0, extension=claim(32)),
    "voxels far away": header((8, 8, 8), offset=2e9, extension=claim(32)),
}


@pytest.fixture(scope="module")
def limited(watch: Callable[..., Any]) -> Iterator[WatchedServer]:
    """A server with low limits."""
    with watch(QUICK, LIMITS) as server:
        yield server


def requests_with(server: WatchedServer, name: str, content: bytes) -> dict[str, requests.Response]:
    """The three ways in which a file comes in."""
    files = {"params": (None, "{}")}
    return {
        "infer": requests.post(f"{server.url}/infer/vqseg", files={**files, "file": (name, content)}, timeout=60),
        "image": requests.put(
            f"{server.url}/datastore/image", params={"image": "sent"}, files={"file": (name, content)}, timeout=60
        ),
        "label": requests.put(
            f"{server.url}/datastore/label",
            params={"image": STUDY, "tag": "sent"},
            files={**files, "label": (name, content)},
            timeout=60,
        ),
    }


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_is_enough_to_refuse(limited: WatchedServer, bomb: str, packed: bool) -> None:
    # So many zeros that a reader who believed the header would unpack them.
    body = BOMBS[bomb] + b"\0" * (64 * MIB if packed else MIB)
    content = gzip.compress(body, 9) if packed else body
    with limited.leaving_nothing():
        before = limited.memory()
        replies = requests_with(limited, f"bomb.nii{'.gz' if packed else ''}", content)
        assert limited.memory() - before < 50 * MIB
    for kind, reply in replies.items():
        assert reply.status_code in (413, 422), (kind, reply.text)
        assert reply.elapsed.total_seconds() < 5
        assert reply.json()["detail"]
    if bomb == "many voxels":
        assert {reply.status_code for reply in replies.values()} == {413}
        assert "at most 2 are taken (--conf upload_unpacked_gib)" in replies["image"].json()["detail"]
    assert not (limited.studies / "sent.nii.gz").exists()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_among_the_studies_is_refused_too(limited: WatchedServer, bomb: str) -> None:
    file = limited.studies / "bomb.nii.gz"
    file.write_bytes(gzip.compress(BOMBS[bomb] + b"\0" * 64 * MIB, 9))
    try:
        end = time.monotonic() + 20
        while (reply := limited.infer("bomb")).status_code == 404 and time.monotonic() < end:
            time.sleep(0.2)  # until the watcher of the folder has seen it
        before = limited.memory()
        reply = limited.infer("bomb")
        assert reply.status_code in (413, 422), reply.text
        assert limited.memory() - before < 50 * MIB
        if bomb == "more than memory":
            assert "GiB of memory, and --conf infer_memory_gib allows 0.50" in reply.json()["detail"]
    finally:
        file.unlink()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_takes_no_time_and_no_memory(bomb: str) -> None:
    file = io.BytesIO(gzip.compress(BOMBS[bomb] + b"\0" * 64 * MIB, 9))
    before, started = psutil.Process().memory_info().rss, time.process_time()
    with contextlib.suppress(ImageError):
        assert read_declared(file, "bomb").stored_bytes != 8**3 * 2
    assert time.process_time() - started < 0.1
    assert psutil.Process().memory_info().rss - before < 50 * MIB


def chunks(size: int) -> Iterator[bytes]:
    """A form whose file has so many bytes, without its length."""
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
    for _ in range(size // 2**16):
        yield b"\0" * 2**16
    yield b"\r\n--x--\r\n"


@pytest.mark.parametrize("path", ["/infer/vqseg", "/datastore/image?image=sent", "/datastore/label?image=case_04"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_beyond_the_limit(limited: WatchedServer, path: str, chunked: bool) -> None:
    method, kind = ("POST" if "infer" in path else "PUT"), {"Content-Type": "multipart/form-data; boundary=x"}
    body = chunks(6 * MIB) if chunked else b"".join(chunks(6 * MIB))
    with limited.leaving_nothing():
        reply = requests.request(method, limited.url + path, data=body, headers=kind, timeout=60)
    assert reply.status_code == 413, reply.text
    assert reply.json()["detail"] == f"the request's body is larger than {int(0.004 * 2**30)} bytes (--conf upload_gib)"


def test_connections_of_refused_clients_are_closed(limited: WatchedServer) -> None:
    before, end = limited.running.num_fds(), time.monotonic() + 20
    for _ in range(5):
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        assert requests.post(f"{limited.url}/infer/vqseg", chunks(6 * MIB), headers=form, timeout=60).status_code == 413
    while limited.running.num_fds() > before and time.monotonic() < end:
        time.sleep(0.2)
    assert limited.running.num_fds() <= before


@pytest.mark.parametrize("path", ["/train/vqseg", "/activelearning/random", "/infer/vqseg"])
def test_only_forms_may_be_large(limited: WatchedServer, path: str) -> None:
    text = json.dumps({"client_id": "x" * 2 * MIB})
    reply = requests.post(limited.url + path, text, headers={"Content-Type": "application/json"}, timeout=60)
    assert reply.status_code == 413, reply.text
    assert f"larger than {MIB} bytes" in reply.json()["detail"]


@pytest.mark.parametrize("field", ["file", "label"])
def test_a_client_that_leaves_in_the_middle_of_its_upload(limited: WatchedServer, field: str) -> None:
    address = urlsplit(limited.url)
    path = "PUT /datastore/image?image=sent" if field == "file" else f"PUT /datastore/label?image={STUDY}"
    with limited.leaving_nothing():
        for _ in range(5):
            with socket.create_connection((address.hostname, address.port)) as connection:
                head = f"{path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                connection.sendall(f"{head}Content-Length: {3 * MIB}\r\n\r\n".encode())
                connection.sendall(next(chunks(0)).replace(b'"file"', f'"{field}"'.encode()) + b"\0" * 2 * MIB)
                time.sleep(0.1)
    assert limited.get("/info/").ok


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "a.nii", "a.dcm", "a.bin", "a.nhdr", "a", f"a.{'x' * 300}", "../../a.nii"]
)
@pytest.mark.parametrize("content", [b"", b"no image", b"\x1f\x8b" + b"\0" * 20, b"\0" * 128 + b"DICM" + b"\xff" * 99])
def test_a_file_that_cannot_be_used_leaves_nothing(limited: WatchedServer, name: str, content: bytes) -> None:
    with limited.leaving_nothing():
        for kind, reply in requests_with(limited, name, content).items():
            assert reply.status_code in (400, 422), (kind, reply.text)
            assert reply.json()["detail"]


def test_a_file_that_can_be_used_leaves_nothing_either(limited: WatchedServer) -> None:
    content = (limited.studies / f"{STUDY}.nii.gz").read_bytes()
    with limited.leaving_nothing():
        reply = requests.post(f"{limited.url}/infer/vqseg", files={"file": ("a.nii.gz", content)}, timeout=60)
        assert reply.ok, reply.text
        mask = limited.infer(STUDY, output="image").content
        form = {"label": ("mask.nii.gz", mask)}
        query = {"image": STUDY, "tag": "kept"}
        assert requests.put(f"{limited.url}/datastore/label", params=query, files=form, timeout=60).ok
        with requests.Session() as session:  # the head of the answer alone
            assert session.post(f"{limited.url}/infer/vqseg", params={"image": STUDY}, stream=True, timeout=60).ok


def test_a_length_that_is_none_is_refused_by_the_server_itself(limited: WatchedServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(limited.url).netloc, timeout=60)
    connection.putrequest("POST", "/train/vqseg")
    connection.putheader("Content-Length", "-1")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_limits_are_checked_on_start(app_module: Any) -> None:
    read = app_module("options").read_options
    assert read({}).infer_memory_gib is None
    assert read({"infer_memory_gib": "2.5", "infer_waiting": "3"}).infer_waiting == 3
    with pytest.raises(ConfigError, match="upload_gib='much': expected a number of GiB"):
        read({"upload_gib": "much"})
