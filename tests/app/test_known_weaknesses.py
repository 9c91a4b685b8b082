"""What monailabel 0.8.5 lets a client do, and this server does not: one test for each, named after what happens there.

The faults are listed where they were found, in the notes on the stock server; each test asserts that nothing was run,
read or written. Damaged models, CORS and the way to the PACS have files of their own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from costs import MIB, costs_of
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from servers import environment
from watched_servers import WatchedServer

STUDY = "case_04"
SECRET = b"the-secret-of-the-host"


def put(server: WatchedServer, path: str, field: str, name: str, content: bytes, **query: Any) -> requests.Response:
    form = {"params": (None, "{}"), field: (name, content)}
    return requests.put(server.url + path, params=query, files=form, timeout=60)


def infer_file(server: WatchedServer, content: bytes, name: str = "a.nii.gz") -> requests.Response:
    return requests.post(f"{server.url}/infer/vqseg", params={"output": "image"}, files={"file": (name, content)})


def kept_by(server: WatchedServer) -> dict[str, bytes]:
    """Every image, label and version of one, and what lies beside them."""
    folder = server.studies.parent
    outside = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".log"]
    files = [*outside, *(path for path in server.studies.rglob("*") if path.is_file() and path.suffix != ".lock")]
    return {str(path): path.read_bytes() for path in files if path.name != "datastore_v2.json"}


@pytest.fixture
def unchanged(target: WatchedServer) -> Iterator[None]:
    """After the test every file is what it was."""
    before = kept_by(target)
    with target.leaving_nothing():
        yield
    assert kept_by(target) == before


# --- code execution in two requests: upload a module, then name its folder as `bundle_path` ---


def test_an_upload_is_no_module(target: WatchedServer, unchanged: None) -> None:
    name, program = "sitecustomize.py", b"raise SystemExit"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, program)
    for reply in (
        put(target, "/datastore/image", "file", name, program),
        put(target, "/datastore/label", "label", name, program, image=STUDY),
        put(target, "/session/", "files", name, program),
        put(target, "/session/", "files", "a.zip", archive.getvalue(), uncompress="true"),
        infer_file(target, program, name),
    ):
        assert reply.status_code in (400, 422), reply.text
    written = (target.studies.parent / place for place in ("studies", "sessions", "tmp"))
    assert not [path for folder in written for path in folder.rglob("*.py")]


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[[], bool]]:
    """A folder that has such a module, however it came there; whether a process has imported it."""
    folder, proof = tmp_path / "bundle", tmp_path / "proof"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"open({str(proof)!r}, 'w').close()\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", ""], env={**environment(), "PYTHONPATH": str(folder)}, check=True)
    assert proof.exists()  # the trap works
    proof.unlink()
    yield proof.exists
    assert not proof.exists()


def ended(server: WatchedServer, path: str, task: str) -> dict[str, Any]:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        found = {one["id"]: one for one in server.get(path, all=True).json()}[task]
        if found["status"] not in ("SUBMITTED", "RUNNING"):
            return found
        time.sleep(0.5)
    pytest.fail(f"{path}: {found}")


def test_a_training_runs_no_module_of_a_client(
    target: WatchedServer, module: Callable[[], bool], tmp_path: Path, unchanged: None
) -> None:
    for body in ({"bundle_path": str(tmp_path / "bundle")}, {"vqseg": {"bundle_path": str(tmp_path / "bundle")}}):
        for path in ("/train/vqseg", "/train/"):
            reply = target.post(path, body)
            assert reply.status_code == 400
            assert "unknown training option" in reply.json()["detail"]
    assert target.stats()["state"] == "none"
    assert not module()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "tasks"), [("/scoring/vqseg", "/scoring/"), ("/batch/infer/vqseg", "/batch/infer")])
def test_no_child_runs_a_module_of_a_client(
    target: WatchedServer, module: Callable[[], bool], tmp_path: Path, path: str, tasks: str
) -> None:
    folder = str(tmp_path / "bundle")
    started = target.post(path, {"bundle_path": folder, "max_batch_size": 1}, bundle_path=folder)
    assert started.ok, started.text
    assert folder not in json.dumps(ended(target, tasks, started.json()["id"]))
    assert not module()


# --- reading any image of the host ---


def test_an_absolute_path_is_no_image(target: WatchedServer, tmp_path: Path, unchanged: None) -> None:
    image = tmp_path / "elsewhere.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((24, 24, 24), np.float32), np.eye(4)), image)
    for name in (str(image), os.path.relpath(image, target.studies), f"{target.studies}/{STUDY}.nii.gz", "", "."):
        reply = target.infer(name, {"image": str(image)}, output="image")
        assert reply.status_code in (400, 404), (name, reply.text[:300])
        assert str(tmp_path) not in reply.text.replace(name, "")
        for path in ("/datastore/image", "/datastore/image/info"):
            assert target.get(path, image=name).status_code == 404


# --- three kinds of traversal: a tag or a name with `../`, and an entry of an archive ---


@pytest.mark.parametrize("tag", ["../../x", "../x", "/etc/x", "..", "a/b"])
def test_a_tag_is_no_path(target: WatchedServer, tag: str, unchanged: None) -> None:
    label = (target.studies / "labels" / "final" / "case_00.nii.gz").read_bytes()
    assert put(target, "/datastore/label", "label", "a.nii.gz", label, image=STUDY, tag=tag).status_code == 400
    assert target.post("/batch/infer/vqseg", {"label_tag": tag}).status_code == 400
    reply = target.infer(STUDY, {"label_tag": tag, "save_label": True}, output="image")
    assert reply.ok  # the tag is not for a client to set, and nothing was kept


@pytest.mark.parametrize("name", ["../x", "../../x", "/etc/x", "a/b", ".."])
def test_a_name_is_no_path(target: WatchedServer, name: str, unchanged: None) -> None:
    image = (target.studies / f"{STUDY}.nii.gz").read_bytes()
    assert put(target, "/datastore/image", "file", "a.nii.gz", image, image=name).status_code == 400
    assert target.post("/train/vqseg", {"name": name}).status_code == 400
    session = put(target, "/session/", "files", f"{name}/a.nii.gz", image)
    assert Path(session.json()["session_info"]["image"]).name == "a.nii.gz"
    assert target.delete(f"/session/{session.json()['session_id']}").ok


@pytest.mark.parametrize("name", ["../x", "../../../../x", "/etc/vqseg-x", "a/../../x"])
def test_an_entry_of_an_archive_is_no_path(target: WatchedServer, name: str, unchanged: None) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        opened.addfile(tarfile.TarInfo(name))
    reply = put(target, "/session/", "files", "a.tar", archive.getvalue(), uncompress="true")
    assert reply.status_code == 400
    assert "outside of itself" in reply.json()["detail"]


# --- few bytes that become many ---


def nifti_header(*shape: int) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 352
    return bytes(header.structarr.tobytes()) + bytes(4)


BOMBS = {
    # 210 kB, 200 MB unpacked; upload_unpacked_gib of this server is 0.1.
    "gzip bomb": gzip.compress(nifti_header(400, 400, 300) + bytes(400 * 400 * 300 * 4), 9),
    "16 GiB declared": gzip.compress(nifti_header(2048, 2048, 1024) + bytes(2**16)),
    "30000^3 declared": gzip.compress(nifti_header(30000, 30000, 30000) + bytes(2**10)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_by_its_header(target: WatchedServer, bomb: str, unchanged: None) -> None:
    infer_file(target, b"")  # what is loaded once is loaded now
    with costs_of(target) as costs:
        for reply in (
            infer_file(target, BOMBS[bomb]),
            put(target, "/datastore/image", "file", "a.nii.gz", BOMBS[bomb], image="bomb"),
            put(target, "/datastore/label", "label", "a.nii.gz", BOMBS[bomb], image=STUDY),
        ):
            assert reply.status_code == 413, reply.text
    assert costs.memory < 50 * MIB


def test_a_zip_bomb_is_not_unpacked(target: WatchedServer, unchanged: None) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.dcm", bytes(2**28))
    with costs_of(target) as costs:
        assert put(target, "/session/", "files", "a.zip", archive.getvalue(), uncompress="true").status_code == 413
    assert costs.memory < 50 * MIB


def test_an_upload_of_gigabytes_is_not_taken(target: WatchedServer, unchanged: None) -> None:
    """It is refused by the length that it says it has, before a byte of it is sent."""
    for path in ("/datastore/image?image=large", f"/datastore/label?image={STUDY}", "/session/", "/infer/vqseg"):
        method = "POST" if path.startswith("/infer") else "PUT"
        asked = requests.Request(method, target.url + path).prepare()
        asked.headers.update({"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(2 * 2**30)})
        reply = requests.Session().send(asked, timeout=60)
        assert reply.status_code == 413
        assert "--conf upload_gib" in reply.json()["detail"]


def test_a_refused_upload_leaves_nothing(target: WatchedServer, unchanged: None) -> None:
    """The fixture looks into the temporary folder."""
    assert infer_file(target, b"no image").status_code == 422
    assert put(target, "/datastore/image", "file", "a.nii.gz", b"no image", image="broken").status_code == 422
    assert put(target, "/datastore/label", "label", "a.nii.gz", b"no mask", image=STUDY).status_code == 422


def test_nested_sequences_are_refused_in_words(target: WatchedServer, unchanged: None) -> None:
    innermost = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.RequestAttributesSequence = [innermost]
        innermost = outer
    innermost.file_meta = FileMetaDataset()
    innermost.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    innermost.SOPClassUID, innermost.SOPInstanceUID = CTImageStorage, generate_uid()
    written = io.BytesIO()
    pydicom.dcmwrite(written, innermost, write_like_original=False)
    for reply in (
        infer_file(target, written.getvalue(), "a.dcm"),
        put(target, "/datastore/label", "label", "a.dcm", written.getvalue(), image=STUDY),
    ):
        assert reply.status_code == 422, reply.text
        assert reply.json()["detail"]


# --- what is open to everybody there ---


def test_a_reload_is_closed_and_the_next_request_is_answered(target: WatchedServer) -> None:
    assert target.post("/reload").status_code == 404
    assert target.post("/activelearning/random").ok


def test_the_files_of_models_and_the_log_are_closed(target: WatchedServer, unchanged: None) -> None:
    model = {path: path.read_bytes() for path in (target.run / "models").rglob("*") if path.is_file()}
    for name in ("vqseg", "x", "../x"):
        assert put(target, f"/model/{name}", "file", "a.pt", b"another").status_code == 404
        assert target.delete(f"/model/{name}").status_code == 404
    assert target.get("/logs/").status_code == 404
    assert {path: path.read_bytes() for path in (target.run / "models").rglob("*") if path.is_file()} == model


@pytest.mark.parametrize("path", ["/train/x", "/scoring/x", "/batch/infer/x", "/infer/x?image=case_00"])
def test_an_unknown_model_is_refused_at_once(target: WatchedServer, path: str) -> None:
    reply = target.post(path)
    assert reply.status_code == 404
    assert "unknown" in reply.json()["detail"]


@pytest.mark.parametrize("path", ["tools/execute-script", "%2e%2e/tools/execute-script", "wado/%2e%2e/system"])
def test_no_pacs_is_reached_but_by_dicomweb(target: WatchedServer, path: str) -> None:
    assert target.get(f"/proxy/dicom/{path}").status_code == 404


@pytest.mark.parametrize("check_sum", ["x:y", "SHA1:abc", ":", "a:b:c", "md5:1"])
def test_a_checksum_of_another_kind_is_refused_in_words(target: WatchedServer, check_sum: str) -> None:
    address, query = f"{target.url}/datastore/image", {"image": STUDY, "check_sum": check_sum}
    assert requests.head(address, params=query, timeout=60).status_code == 400
    reply = requests.get(address, params=query, timeout=60)
    assert reply.status_code == 400
    assert "expected ALGORITHM:DIGEST, with SHA256, SHA512, MD5" in reply.json()["detail"]


def test_a_checksum_is_compared(target: WatchedServer) -> None:
    content = (target.studies / f"{STUDY}.nii.gz").read_bytes()
    for kind in ("SHA256", "SHA512", "MD5"):
        digest = hashlib.new(kind, content).hexdigest()
        forms = [f"{kind}:{digest}", *([digest, digest.upper()] if kind == "SHA256" else [])]
        for form in forms:
            for method in ("GET", "HEAD"):
                query = {"image": STUDY, "check_sum": form}
                assert requests.request(method, f"{target.url}/datastore/image", params=query, timeout=60).ok
        other = {"image": STUDY, "check_sum": f"{kind}:{digest[:-1]}{'0' if digest[-1] != '0' else '1'}"}
        assert requests.head(f"{target.url}/datastore/image", params=other, timeout=60).status_code == 404
    assert target.get("/datastore/image", image="nothing", check_sum=digest).status_code == 404
