"""Names that are paths, from every place where a request holds a name: each is refused in words, and nothing is read
or written outside the studies."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import nibabel as nib
import numpy as np
import pytest

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
    """Where a request holds a name: `method` and `path` of the route, in which `{}` stands for the name; `form` fields,
    in which it does too; `upload` is the field of an uploaded label or image."""

    method: str
    path: str
    form: dict[str, str] | None = None
    upload: str | None = None


PLACES = {
    "image of an inference": Place("POST", "/infer/vqseg?image={}", {"params": "{}"}),
    "model of an inference": Place("POST", "/infer/{}?image=case_00", {"params": "{}"}),
    "session of an inference": Place("POST", "/infer/vqseg?session_id={}", {"params": "{}"}),
    "model of a batch": Place("POST", "/batch/infer/{}"),
    "trainer": Place("POST", "/train/{}"),
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
    "model to download": Place("GET", "/model/{}"),
    "file of the viewer": Place("GET", "/ohif/{}"),
    "route of the PACS": Place("GET", "/proxy/dicom/{}"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the logs, the index and locks: the server's temporary folder is among them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.suffix not in (".log", ".json", ".jsonl", ".lock")}


@pytest.fixture(scope="module")
def outside(fresh: Any) -> Iterator[Path]:
    """A file beside the studies that no request may read, change or remove."""
    path = fresh.studies.parent / "outside.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), path)
    secret = fresh.studies.parent / "secret"
    secret.write_text(SECRET, encoding="utf-8")
    yield path
    path.unlink()
    secret.unlink()


def send(server: Any, place: Place, name: str, label: bytes) -> tuple[int, bytes]:
    """Status and body. The name goes as it is, without a client that tidies paths up."""
    address, body, headers = urlsplit(server.url), b"", {}
    in_path = "{}" in place.path.partition("?")[0]
    # In a path it goes raw where HTTP allows it, so that dots and slashes reach the server as they are.
    encoded = quote(name, safe="/%.~\\" if in_path else "")
    if place.form is not None or place.upload:
        fields = {} if place.form is None else place.form
        head = 'Content-Disposition: form-data; name="{}"'
        parts = [f"{head.format(key)}\r\n\r\n{value}".encode() for key, value in fields.items()]
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
def test_a_path_for_a_name(fresh: Any, outside: Path, place: str) -> None:
    label = (fresh.studies / "labels" / "final" / "case_00.nii.gz").read_bytes()
    folder = fresh.studies.parent
    kept = snapshot(folder)
    for payload in PAYLOADS:
        name = payload.replace("{outside}", str(outside)).replace("{folder}", str(folder))
        status, body = send(fresh, PLACES[place], name, label)
        assert status == 0 or 300 <= status < 500 or body_of_start_page(place, body), (name, status, body[:300])
        assert SECRET.encode() not in body, name
        assert b"Traceback" not in body
        assert b"root:" not in body
        if status >= 400 and PLACES[place].method != "HEAD":
            assert json.loads(body)["detail"]
    assert snapshot(folder) == kept
    assert fresh.get("/info/").ok


def body_of_start_page(place: str, body: bytes) -> bool:
    """The viewer answers an unknown address with its start page, as a page that finds its own way does."""
    return place == "file of the viewer" and b"<!doctype html>" in body[:200].lower()


@pytest.mark.parametrize("field", ["label_tag", "image", "model", "session", "bundle_path", "save_label"])
def test_a_path_in_the_parameters_of_an_inference(fresh: Any, outside: Path, field: str) -> None:
    kept = set(snapshot(fresh.studies.parent))
    for payload in PAYLOADS:
        name = payload.replace("{outside}", str(outside)).replace("{folder}", str(fresh.studies.parent))
        body = urlencode({"params": json.dumps({field: name, "save_label": True})})
        connection = http.client.HTTPConnection(urlsplit(fresh.url).netloc, timeout=SECONDS)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/infer/vqseg?image=case_00", body, form)
        reply = connection.getresponse()
        assert reply.status == 409  # there is no model yet, whatever the parameters say
        assert SECRET.encode() not in reply.read()
        connection.close()
    assert set(snapshot(fresh.studies.parent)) == kept
