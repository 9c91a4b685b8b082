"""A session is an image that is kept for a while: its id leads nowhere else, and nothing in it is a program."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import nibabel as nib
import numpy as np
import pytest
import requests
from watched_servers import WatchedServer

PROGRAMS = ("sitecustomize.py", "usercustomize.PYC", "a.so", "a.pth")


def archive(**content: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as opened:
        for name, data in content.items():
            opened.writestr(name, data)
    return written.getvalue()


def keep(server: WatchedServer, *files: tuple[str, bytes], uncompress: bool = False) -> requests.Response:
    query = {"uncompress": "true"} if uncompress else {}
    return requests.put(f"{server.url}/session/", params=query, files=[("files", file) for file in files], timeout=60)


def test_a_folder_inside_a_session_is_no_session(target: WatchedServer, tmp_path: Path) -> None:
    """An upload would say which file of the machine is its image."""
    secret = tmp_path / "secret.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), secret)
    told = {"name": "x", "path": str(tmp_path), "image": str(secret), "expiry": 3600, "last_access_ts": 2**40}
    made = keep(target, ("a.zip", archive(**{"meta.info": json.dumps(told).encode()})), uncompress=True).json()
    session = made["session_id"]
    place = Path(made["session_info"]["image"])
    assert (place / "meta.info").is_file()  # it is there, and nobody reads it
    for name in (f"{session}/{place.name}", f"{session}/./{place.name}", f"./{session}"):
        for reply in (
            target.infer("", session_id=name, output="image"),
            target.get(f"/session/{name.replace('/', '%2F')}", image=True),
            target.delete(f"/session/{name.replace('/', '%2F')}"),
        ):
            assert reply.status_code in (400, 404, 405), (name, reply.text[:300])
            assert secret.name not in reply.text
    assert target.get(f"/session/{session}").ok
    assert target.delete(f"/session/{session}").ok
    assert secret.is_file()
    assert not place.exists()


def test_an_image_elsewhere_is_not_that_of_a_session(target: WatchedServer, app_module: Any, tmp_path: Path) -> None:
    """Whatever was written over the file that says which it is."""
    sessions, session = app_module("sessions").NamedSessions(str(tmp_path / "sessions")), str(uuid4())
    for name in ("secret.nii.gz", "image.nii.gz"):
        (tmp_path / name).write_bytes(b"voxels")
    sessions.add_session(str(tmp_path / "image.nii.gz"), session_id=session)
    assert sessions.get_session(session).image == str(tmp_path / "sessions" / session / "image.nii.gz")
    told = tmp_path / "sessions" / session / "meta.info"
    told.write_text(told.read_text().replace(sessions[session].image, str(tmp_path / "secret.nii.gz")))
    sessions.clear()
    assert sessions.get_session(session) is None


def test_what_is_over_is_removed_whatever_lies_beside_it(app_module: Any, tmp_path: Path) -> None:
    store, images = tmp_path / "sessions", [tmp_path / f"{number}.nii.gz" for number in range(3)]
    sessions, ids = app_module("sessions").NamedSessions(str(store)), [str(uuid4()) for _ in images]
    for session, image in zip(ids, images, strict=True):
        image.write_bytes(b"voxels")
        sessions.add_session(str(image), session_id=session)
    over, broken, lasting = ids
    told = store / over / "meta.info"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"last_access_ts": 1}))
    (store / broken / "1.nii.gz").unlink()
    (store / "not ours").mkdir()
    assert sessions.remove_expired() >= 1
    assert {place.name for place in store.iterdir()} == {lasting, "not ours"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_refused(target: WatchedServer, name: str) -> None:
    program, folder = b"raise SystemExit", target.studies.parent / "sessions"
    before, kept = target.files(), set(folder.rglob("*"))
    for reply in (
        keep(target, (name, program)),
        keep(target, ("a.dcm", b"voxels"), (name, program)),
        keep(target, ("a.zip", archive(**{"a.dcm": b"voxels", f"series/{name}": program})), uncompress=True),
    ):
        assert reply.status_code == 400
        assert "is a program" in reply.json()["detail"]
    assert target.files() == before
    assert set(folder.rglob("*")) == kept
