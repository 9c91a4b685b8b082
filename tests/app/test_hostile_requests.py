"""Names that are paths, from every place where a request holds a name: each is refused in words, nothing is read or
written outside the studies, and afterwards the server is what it was."""

from __future__ import annotations

import http.client
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import nibabel as nib
import numpy as np
import pytest
import requests
from unharmed import Unharmed
from watched_servers import WatchedServer

STUDY = "case_04"
LARGEST_MIB = 200
# 422 where the path itself has a pattern.
REFUSED = (400, 404, 422)
SECONDS = 5  # a reply that takes longer is a hang
SECRET = "the-secret-of-the-host"
_TARGETS = ("{outside}", "{folder}/secret", "etc/passwd", "etc/passwd\0.nii.gz", "labels/final/case_00")
_CLIMBS = ("../", "../../../../", "..%2f", "%2e%2e/", "%252e%252e%252f", "..\\", "....//", "./../", "/")
PAYLOADS = [f"{climb}{target}" for climb in _CLIMBS for target in _TARGETS] + [
    "..",
    ".",
    "~root/.ssh/id_rsa",
    "file:///etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\host\\share\\x",
    "case_00/../case_01",
    "case_00\0",
    "$(touch {outside})",
    "`touch {outside}`",
    "; touch {outside}",
    "{{7*7}}",
    "case_00\r\nSet-Cookie: a=b",
    "\u202ecase_00",
    "a" * 5000,
    "..\u2215..\u2215etc\u2215passwd",
    "%00",
    "*",
]


@dataclass(frozen=True)
class Place:
    """Where a request holds a name: `method` and `path` of the route, in which `{}` stands for the name; `form` fields
    or a JSON `body`, in which `NAME` does; `upload` is the field of an uploaded label or image."""

    method: str
    path: str
    form: dict[str, str] | None = None
    upload: str | None = None
    body: str | None = None


PLACES = {
    "image of an inference": Place("POST", "/infer/vqseg?image={}", {"params": "{}"}),
    "model of an inference": Place("POST", "/infer/{}?image=case_00", {"params": "{}"}),
    "version of an inference": Place("POST", "/infer/vqseg?image=case_00", {"params": '{"model_version": "NAME"}'}),
    "session of an inference": Place("POST", "/infer/vqseg?session_id={}", {"params": "{}"}),
    "model of a batch": Place("POST", "/batch/infer/{}"),
    "tag of a batch": Place("POST", "/batch/infer/vqseg", body='{"label_tag": "NAME"}'),
    "trainer": Place("POST", "/train/{}"),
    "name of a training": Place("POST", "/train/vqseg", body='{"name": "NAME"}'),
    "scoring": Place("POST", "/scoring/{}"),
    "strategy": Place("POST", "/activelearning/{}"),
    "strategy of a ranking": Place("GET", "/vqseg/ranking?strategy={}"),
    "image to download": Place("GET", "/datastore/image?image={}"),
    "image to look for": Place("HEAD", "/datastore/image?image={}"),
    "image to describe": Place("GET", "/datastore/image/info?image={}"),
    "image to add": Place("PUT", "/datastore/image?image={}", {"params": "{}"}, "file"),
    "image to remove": Place("DELETE", "/datastore/?id={}"),
    "image of a label": Place("PUT", "/datastore/label?image={}", {"params": "{}"}, "label"),
    "tag of a label": Place("PUT", "/datastore/label?image=case_00&tag={}", {"params": "{}"}, "label"),
    "label to download": Place("GET", "/datastore/label?label={}&tag=final"),
    "label to describe": Place("GET", "/datastore/label/info?label={}&tag=final"),
    "tag to describe": Place("GET", "/datastore/label/info?label=case_00&tag={}"),
    "tag to download": Place("GET", "/datastore/label?label=case_00&tag={}"),
    "label to remove": Place("DELETE", "/datastore/label?id={}&tag=final"),
    "tag to remove": Place("DELETE", "/datastore/label?id=case_00&tag={}"),
    "image to note something with": Place("PUT", "/datastore/image/info?image={}", {"info": "{}"}),
    "label to note something with": Place("PUT", "/datastore/label/info?label={}&tag=final", {"info": "{}"}),
    "session to look into": Place("GET", "/session/{}"),
    "session to remove": Place("DELETE", "/session/{}"),
    "version to describe": Place("GET", "/vqseg/models/{}"),
    "version to compare": Place("GET", "/vqseg/models/{}/compare/{}"),
    "version to make live": Place("POST", "/vqseg/models/{}/live"),
    "image to list labels of": Place("GET", "/vqseg/labels/{}"),
    "version of a label": Place("GET", "/vqseg/labels/case_00/{}"),
    "image to look at": Place("GET", "/vqseg/studies/{}/picture"),
    "report": Place("GET", "/vqseg/reports/{}"),
    "model to download": Place("GET", "/model/{}"),
    "file of the viewer": Place("GET", "/ohif/{}"),
    "route of the PACS": Place("GET", "/proxy/dicom/{}"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the logs, the index and locks: the server's temporary folder and its sessions are among them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.suffix not in (".log", ".json", ".jsonl", ".lock")}


@pytest.fixture(scope="module")
def outside(target: WatchedServer) -> Iterator[Path]:
    """A file beside the studies that no request may read, change or remove."""
    path = target.studies.parent / "outside.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), path)
    secret = target.studies.parent / "secret"
    secret.write_text(SECRET, encoding="utf-8")
    yield path
    path.unlink()
    secret.unlink()


@pytest.fixture(scope="module", autouse=True)
def unharmed(target: WatchedServer) -> Iterator[None]:
    """Around all tests here: the same mask, memory within LARGEST_MIB, no temporary file more."""
    with Unharmed(target, STUDY, LARGEST_MIB):
        yield


def payloads(server: WatchedServer, outside: Path) -> list[str]:
    return [
        name.replace("{outside}", str(outside)).replace("{folder}", str(server.studies.parent)) for name in PAYLOADS
    ]


def send(server: Any, place: Place, name: str, label: bytes) -> tuple[int, bytes]:
    """Status and body. The name goes as it is, without a client that tidies paths up."""
    address, body, headers = urlsplit(server.url), b"", {}
    in_path = "{}" in place.path.partition("?")[0]
    # In a path it goes raw where HTTP allows it, so that dots and slashes reach the server as they are.
    encoded = quote(name, safe="/%.~\\" if in_path else "")
    if place.body:
        body, headers = (
            place.body.replace("NAME", json.dumps(name)[1:-1]).encode(),
            {"Content-Type": "application/json"},
        )
    if place.form is not None or place.upload:
        fields = {} if place.form is None else place.form
        head = 'Content-Disposition: form-data; name="{}"'
        parts = [
            f"{head.format(key)}\r\n\r\n{value}".replace("NAME", json.dumps(name)[1:-1]).encode()
            for key, value in fields.items()
        ]
        if place.upload:
            start = f'{head.format(place.upload)}; filename="label.nii.gz"\r\n\r\n'
            parts.append(start.encode() + label)
        body = b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    try:
        connection.request(place.method, place.path.replace("{}", encoded), body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except http.client.InvalidURL:
        return 0, b""  # HTTP cannot even carry it
    finally:
        connection.close()


@pytest.mark.parametrize("place", PLACES)
def test_a_path_for_a_name(target: WatchedServer, outside: Path, place: str) -> None:
    label = (target.studies / "labels" / "final" / "case_00.nii.gz").read_bytes()
    kept = snapshot(target.studies.parent)
    for name in payloads(target, outside):
        status, body = send(target, PLACES[place], name, label)
        assert status in REFUSED or body_of_start_page(place, body), (name, status, body[:300])
        assert SECRET.encode() not in body, name
        assert b"Traceback" not in body
        assert b"root:" not in body
        if status >= 400 and PLACES[place].method != "HEAD":
            assert json.loads(body)["detail"]
    assert snapshot(target.studies.parent) == kept
    assert target.get("/info/").ok


def body_of_start_page(place: str, body: bytes) -> bool:
    """The viewer answers an unknown address with its start page, as a page that finds its own way does."""
    return place == "file of the viewer" and b"<!doctype html>" in body[:200].lower()


RESERVED = ("label_tag", "image", "model", "session", "label", "bundle_path", "_image_id")


def test_a_path_in_the_parameters_of_an_inference(target: WatchedServer, outside: Path) -> None:
    """They change nothing: the study of the address is segmented, and the mask is not kept."""
    kept, mask = snapshot(target.studies.parent), target.infer(STUDY, output="image").content
    with target.leaving_nothing():
        for name in payloads(target, outside):
            params = {**dict.fromkeys(RESERVED, name), "save_label": True, "keep_signals": name}
            reply = target.infer(STUDY, params, output="image")
            assert reply.status_code == 200, (name, reply.text[:300])
            assert reply.content == mask
    assert snapshot(target.studies.parent) == kept
    assert "original" not in target.get("/datastore/", output="all").json()["objects"][STUDY]["labels"]


def zipped(name: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("a.dcm", b"first")
        archive.writestr(zipfile.ZipInfo(name), b"second")
    return written.getvalue()


def tarred(name: str) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for one in ("a.dcm", name):
            member = tarfile.TarInfo(one)
            member.size = 6
            archive.addfile(member, io.BytesIO(b"second"))
    return written.getvalue()


def climbs(name: str) -> bool:
    """Whether it leads out of a folder, also where a backslash is a slash."""
    return not os.path.normpath(os.path.join("/in", name.replace("\\", "/"))).startswith("/in")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_path_in_an_archive(target: WatchedServer, outside: Path, pack: Any) -> None:
    kept, names = snapshot(target.studies.parent), payloads(target, outside)
    refused = set()
    for name in names:
        form = {"files": ("series", pack(name))}
        reply = requests.put(f"{target.url}/session/?uncompress=true", files=form, timeout=SECONDS)
        assert reply.status_code in (200, 400), (name, reply.text[:300])
        if reply.ok:  # inside it is a name like any other
            assert target.delete(f"/session/{reply.json()['session_id']}").ok
        else:
            assert "archive" in reply.json()["detail"]
            refused.add(name)
        assert snapshot(target.studies.parent) == kept, name
    assert {name for name in names if climbs(name)} <= refused
    assert len(refused) >= 25


def test_an_archive_of_two_kinds(target: WatchedServer, outside: Path) -> None:
    """A tar that leads outside and links to a secret, with a harmless zip behind it: it is one or the other."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        climb, link = tarfile.TarInfo("../../../evil"), tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside.with_name("secret"))
        archive.addfile(climb)
        archive.addfile(link)
    with zipfile.ZipFile(written, "a") as harmless:
        harmless.writestr("a.dcm", b"first")
    for name in ("a.tar", "a.zip", "a.tar.gz"):
        form = {"files": (name, written.getvalue())}
        reply = requests.put(f"{target.url}/session/?uncompress=true", files=form, timeout=SECONDS)
        assert reply.ok, reply.text
        folder = Path(reply.json()["session_info"]["image"])
        assert [path.name for path in folder.rglob("*")] == ["a.dcm"]
        assert not list(target.studies.parent.rglob("evil"))
        assert target.delete(f"/session/{reply.json()['session_id']}").ok
