"""What a client sends is bounded by its length, by what it unpacks to and by memory; nothing of it is left behind."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import psutil
import pydicom
import pytest
import requests
from costs import MIB, Costs, costs_of
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from starlette.exceptions import HTTPException
from unharmed import Unharmed
from watched_servers import QUICK, WatchedServer

from vqseg.data.header import DeclaredVoxels, read_declared
from vqseg.errors import ConfigError, ImageError, VQSegError

STUDY = "case_04"
# As much as a large CT, in a file of some kilobytes.
BOMB_SHAPE = (512, 512, 8192)
LIMITS = {
    "upload_gib": "0.004",
    "upload_megavoxels": "1000",
    "upload_unpacked_gib": "2",
    "infer_memory_gib": "0.5",
    "open_routes": "archives",
}
ALLOWED = "GiB of memory, and --conf infer_memory_gib allows 0.50"
# What refusing a header may cost the server. Of the processors' time: on a machine that others use the clock measures
# these. Measured around a whole request, at the grain of a hundredth.
SECONDS, LARGEST = 0.1, 50 * MIB


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


def dicom_bomb(syntax: str, **attributes: int) -> bytes:
    """A DICOM file that says it holds as many voxels as 4000 slices of 4000 x 4000."""
    made = pydicom.Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = CTImageStorage, "1.2.3", "CT"
    made.Rows = made.Columns = made.NumberOfFrames = 4000
    made.BitsAllocated, made.SamplesPerPixel, made.PixelData = 16, 1, bytes(2 * MIB)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID, made.file_meta.MediaStorageSOPClassUID = syntax, CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.is_little_endian, made.is_implicit_VR = True, False
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, write_like_original=False)
    return file.getvalue()


DICOM_BOMBS = {
    "plain": dicom_bomb(ExplicitVRLittleEndian),
    "deflated": dicom_bomb(DeflatedExplicitVRLittleEndian),
    "one large frame": dicom_bomb(ExplicitVRLittleEndian, Rows=65535, Columns=65535, NumberOfFrames=1),
}


@pytest.fixture(scope="module")
def limited(watch: Callable[..., Any]) -> Iterator[WatchedServer]:
    """A server with low limits, which is what it was after all that is sent to it."""
    # What memory each request takes is measured at that request.
    with watch(QUICK, LIMITS) as server, Unharmed(server, STUDY, largest_mib=512):
        yield server


@dataclass
class Answered:
    reply: requests.Response
    costs: Costs


def requests_with(server: WatchedServer, name: str, content: bytes) -> dict[str, Answered]:
    """The three ways in which a file comes in."""
    params, answered = {"params": (None, "{}")}, {}
    for kind, method, path, query, form in (
        ("infer", "POST", "/infer/vqseg", {}, {**params, "file": (name, content)}),
        ("image", "PUT", "/datastore/image", {"image": "sent"}, {"file": (name, content)}),
        ("label", "PUT", "/datastore/label", {"image": STUDY, "tag": "sent"}, {**params, "label": (name, content)}),
    ):
        with costs_of(server) as costs:
            reply = requests.request(method, server.url + path, params=query, files=form, timeout=60)
        answered[kind] = Answered(reply, costs)
    return answered


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_is_enough_to_refuse(limited: WatchedServer, bomb: str, packed: bool) -> None:
    # So many zeros that a reader who believed the header would unpack them.
    body = BOMBS[bomb] + b"\0" * (64 * MIB if packed else MIB)
    content = gzip.compress(body, 9) if packed else body
    with limited.leaving_nothing():
        answered = requests_with(limited, f"bomb.nii{'.gz' if packed else ''}", content)
    check_refused(answered)
    if bomb == "many voxels":
        assert {one.reply.status_code for one in answered.values()} == {413}
        assert "at most 2 are taken (--conf upload_unpacked_gib)" in answered["image"].reply.json()["detail"]
    assert not (limited.studies / "sent.nii.gz").exists()


def check_refused(answered: dict[str, Answered]) -> None:
    for kind, one in answered.items():
        assert one.reply.status_code in (413, 422), (kind, one.reply.text)
        assert one.reply.json()["detail"]
        assert one.costs.memory < LARGEST, kind
        assert one.costs.seconds < SECONDS, kind


@pytest.mark.parametrize("bomb", DICOM_BOMBS)
def test_a_dicom_header_is_enough_to_refuse(limited: WatchedServer, bomb: str) -> None:
    with limited.leaving_nothing():
        check_refused(requests_with(limited, "bomb.dcm", DICOM_BOMBS[bomb]))


def zip_bomb() -> bytes:
    """It is refused by what it says of its files, so they need not be as long."""
    file, length, claimed = io.BytesIO(), 10_007, 64 * MIB
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(36):
            archive.writestr(f"{number}.dcm", bytes(length))
    return file.getvalue().replace(length.to_bytes(4, "little"), claimed.to_bytes(4, "little"))


def tar_bomb() -> bytes:
    """It is refused by what its first header says, so no more of it need be made."""
    member = tarfile.TarInfo("a.dcm")
    member.size = 3 * 2**30
    return gzip.compress(member.tobuf() + bytes(64 * MIB), 6)


@pytest.mark.parametrize(("name", "make"), [("a.zip", zip_bomb), ("a.tar.gz", tar_bomb)])
def test_an_archive_is_refused_by_what_it_lists(limited: WatchedServer, name: str, make: Callable[[], bytes]) -> None:
    content = make()
    assert len(content) < float(LIMITS["upload_gib"]) * 2**30
    with limited.leaving_nothing(), costs_of(limited) as costs:
        address = f"{limited.url}/session/?uncompress=true"
        reply = requests.put(address, files={"files": (name, content)}, timeout=60)
    assert reply.status_code == 413, reply.text
    assert "more than 2 GiB (--conf upload_unpacked_gib)" in reply.json()["detail"]
    assert costs.memory < LARGEST
    assert costs.seconds < SECONDS


@contextlib.contextmanager
def among_the_studies(server: WatchedServer, **bombs: bytes) -> Iterator[None]:
    """The server knows them inside the block."""
    files = {server.studies / f"{name}.nii.gz": content for name, content in bombs.items()}
    try:
        for file, content in files.items():
            file.write_bytes(gzip.compress(content + b"\0" * 64 * MIB, 9))
        end = time.monotonic() + 60
        while any(server.get("/datastore/image/info", image=name).status_code == 404 for name in bombs):
            assert time.monotonic() < end
            time.sleep(0.2)  # until the watcher of the folder has seen them
        yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_among_the_studies_is_refused_too(limited: WatchedServer, bomb: str) -> None:
    with among_the_studies(limited, bomb=BOMBS[bomb]):
        with costs_of(limited) as costs:
            reply = limited.infer("bomb")
        assert reply.status_code in (413, 422), reply.text
        assert costs.memory < LARGEST
        assert costs.seconds < SECONDS
        if bomb == "more than memory":
            assert ALLOWED in reply.json()["detail"]


def test_bombs_among_the_studies_are_left_out_of_the_choice(limited: WatchedServer) -> None:
    """By strategies that look at the studies, by chance, and in the ranking of what was scored."""
    assert limited.post("/activelearning/random", {"client_id": "random"}).ok  # all others are scored now
    bombs = {f"bomb_{number}": content for number, content in enumerate(BOMBS.values())}
    large = f"bomb_{list(BOMBS).index('more than memory')}"
    with among_the_studies(limited, **bombs):
        with costs_of(limited) as costs:
            # Each as somebody else, who has no study yet.
            replies = [limited.post(f"/activelearning/{name}", {"client_id": name}) for name in ("random", "uniform")]
        assert costs.memory < LARGEST
        assert costs.seconds < SECONDS * len(bombs) * len(replies)
        assert all(reply.ok and reply.json()["id"].startswith("case_") for reply in replies)
        note = replies[0].json()["note"]
        assert all(f"{bomb} (" in note for bomb in bombs)
        assert ALLOWED in note
        end = time.monotonic() + 600  # the scoring has the lowest claim on the processor
        while (page := limited.get("/vqseg/ranking").json())["left_out"].keys() != bombs.keys():
            assert time.monotonic() < end, page
            time.sleep(0.5)
        assert ALLOWED in page["left_out"][large]
        with costs_of(limited) as costs:
            assert limited.get("/vqseg/ranking").ok
        assert costs.memory < LARGEST


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_takes_no_time_and_no_memory(bomb: str) -> None:
    file = io.BytesIO(gzip.compress(BOMBS[bomb] + b"\0" * 64 * MIB, 9))
    before, started = psutil.Process().memory_info().rss, time.process_time()
    with contextlib.suppress(ImageError):
        assert read_declared(file, "bomb").stored_bytes != 8**3 * 2
    assert time.process_time() - started < SECONDS
    assert psutil.Process().memory_info().rss - before < LARGEST


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
    before, end = limited.running.num_fds(), time.monotonic() + 60
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
        for kind, one in requests_with(limited, name, content).items():
            assert one.reply.status_code in (400, 422), (kind, one.reply.text)
            assert one.reply.json()["detail"]


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


def test_files_that_arrive_together_fit_into_memory_together(limited: WatchedServer) -> None:
    """Each of them alone does, and sees the same memory."""
    shape, sent = (360, 360, 360), [f"together_{number}" for number in range(6)]
    content = gzip.compress(header(shape) + bytes(2 * 360**3), 1)
    allowed = float(LIMITS["infer_memory_gib"]) * 1024 * MIB
    assert allowed / 2 < read_declared(io.BytesIO(content), "sent").reading_bytes < allowed

    def put(name: str) -> requests.Response:
        form = {"file": ("a.nii.gz", content)}
        return requests.put(f"{limited.url}/datastore/image", params={"image": name}, files=form, timeout=120)

    try:
        with costs_of(limited) as costs, ThreadPoolExecutor(len(sent)) as clients:
            replies = list(clients.map(put, sent))
        assert {reply.status_code for reply in replies} <= {200, 503}
        assert replies[0].ok or replies[1].ok
        assert all(reply.ok or int(reply.headers["Retry-After"]) > 0 for reply in replies)
        assert costs.memory < allowed
    finally:
        for name in sent:
            limited.delete(f"/datastore/?id={name}")


@pytest.mark.parametrize("kind", ["", '; filename="a.nii"'], ids=["fields", "files"])
def test_the_parts_of_a_form_take_little_memory(fresh: Any, kind: str) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(300):
            head = f'--x\r\nContent-Disposition: form-data; name="f{number}"{kind}\r\n\r\n'
            yield head.encode() + b"a" * (MIB - 1) + b"\r\n"
        yield b"--x--\r\n"

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    with costs_of(fresh) as costs, contextlib.suppress(requests.ConnectionError):  # it need not read to the end
        reply = requests.put(f"{fresh.url}/datastore/image?image=sent", data=parts(), headers=form, timeout=60)
        assert reply.status_code in (400, 422), reply.text
        assert reply.json()["detail"]
    assert costs.memory < LARGEST
    assert fresh.get("/info/").ok


@pytest.fixture
def guard_module(app_module: Any) -> Any:
    return app_module("memory_guard")


def reading(gib: float) -> DeclaredVoxels:
    return DeclaredVoxels((round(gib * 2**30 / 9),), 8)


def test_who_does_not_fit_beside_others_waits_for_them(guard_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guard_module.MemoryGuard(1.0)
    with ThreadPoolExecutor() as pool:
        with guard.room_for(reading(0.6), "first"):

            def read() -> None:
                with guard.room_for(reading(0.6), "second"):
                    pass

            waiting = pool.submit(read)
            with guard.room_for(reading(0.3), "what fits beside it"):
                time.sleep(0.2)
            assert not waiting.done()
        waiting.result(5)
        monkeypatch.setattr(guard_module, "_LONGEST_WAIT_SECONDS", 0.1)
        with guard.room_for(reading(0.6), "first"), pytest.raises(HTTPException, match="try again later") as refused:
            pool.submit(read).result(5)
    assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "10"})
    with pytest.raises(VQSegError, match=r"allows 1\.00"), guard.room_for(reading(1.1), "large"):
        pass


def test_no_more_wait_than_leave_threads_for_others(guard_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, most = guard_module.MemoryGuard(1.0), guard_module._MOST_WAITING
    monkeypatch.setattr(guard_module, "_LONGEST_WAIT_SECONDS", 5.0)

    def read() -> float:
        begun = time.monotonic()
        with contextlib.suppress(HTTPException), guard.room_for(reading(0.9), "another"):
            pass
        return time.monotonic() - begun

    with ThreadPoolExecutor(most + 8) as pool:
        with guard.room_for(reading(0.9), "first"):
            waits = [pool.submit(read) for _ in range(most + 8)]
            time.sleep(0.5)
            assert sum(one.done() for one in waits) == 8
        assert all(one.result() < 5 for one in waits)
