"""An archive is unpacked into one folder, up to a size, and nothing but files; else it is refused before it begins."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from builders import write_dicom

from vqseg.errors import ConfigError, VQSegError

CONTENT = {"a.dcm": b"first", "series/b.dcm": b"second" * 1000, "series/c.dcm": b""}
OUTSIDE = ("../a", "series/../../a", "/etc/a", "..\\a", "a/../../b")


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, voxels in content.items():
            archive.writestr(zipfile.ZipInfo(name), voxels, zipfile.ZIP_DEFLATED)
    return path


def tarred(path: Path, content: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, voxels in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(voxels), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(voxels))
    return path


KINDS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {"a.zip": zipped, "a.tar": tarred, "a.tar.gz": tarred}


@pytest.fixture
def unpack(app_module: Any) -> Any:
    return app_module("archives").unpack


def refused(unpack: Any, archive: Path, words: str) -> None:
    """Checks that it is, in these words, and that nothing was made beside it."""
    with pytest.raises(ConfigError, match=words):
        unpack(archive, archive.parent / "out", 1)
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_unpacked_as_they_were(unpack: Any, tmp_path: Path, kind: str) -> None:
    unpack(KINDS[kind](tmp_path / kind, CONTENT), tmp_path / "out", 1)
    found = {str(file.relative_to(tmp_path / "out")): file.read_bytes() for file in tmp_path.glob("out/**/*.dcm")}
    assert found == CONTENT


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_unpacked_outside(unpack: Any, tmp_path: Path, kind: str, name: str) -> None:
    archive = KINDS[kind](tmp_path / kind, {"first": b"1", name: b"2"})
    refused(unpack, archive, "outside of itself")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(unpack: Any, tmp_path: Path, kind: bytes) -> None:
    archive = tarred(tmp_path / "a.tar", {"a": b""}, kind)
    refused(unpack, archive, "link or a device")


def polyglot(path: Path) -> Path:
    """A tar with a way out and a link, and a harmless zip behind it, which is what a look at the content finds."""
    with tarfile.open(path, "w") as archive:
        out, link = tarfile.TarInfo("../evil"), tarfile.TarInfo("link")
        out.size, link.type, link.linkname = 4, tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(out, io.BytesIO(b"evil"))
        archive.addfile(link)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.dcm", b"first")
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz", "a.dcm", "a"])
def test_what_was_looked_at_is_what_is_unpacked(unpack: Any, tmp_path: Path, name: str) -> None:
    archive = polyglot(tmp_path / name)
    unpack(archive, tmp_path / "out", 1)
    assert set(tmp_path.rglob("*")) == {archive, tmp_path / "out", tmp_path / "out" / "a.dcm"}
    assert not (tmp_path / "out" / "a.dcm").is_symlink()


@pytest.mark.parametrize("name", ["sitecustomize.py", "a/b.PYC", "a/__init__.so", "x.pth"])
@pytest.mark.parametrize("kind", KINDS)
def test_programs_are_refused(unpack: Any, tmp_path: Path, kind: str, name: str) -> None:
    archive = KINDS[kind](tmp_path / kind, {"a.dcm": b"1", name: b"raise SystemExit"})
    refused(unpack, archive, "is a program")


def _header(name: str, kind: bytes, content: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    return member.tobuf() + content + bytes(-len(content) % 512)


def _pax(key: str, count: int) -> bytes:
    end = f" {key}={'a' * count}\n"
    length = len(end) + 1
    while len(str(length)) + len(end) != length:
        length = len(str(length)) + len(end)
    return f"{length}{end}".encode()


def _sparse(blocks: int) -> bytes:
    """A file with a map of its holes that goes on and on."""
    first = bytearray(_header("holes", tarfile.GNUTYPE_SPARSE, b""))
    first[482] = 1  # the map goes on in the next block
    first[148:156] = f"{sum(first[:148]) + 8 * 32 + sum(first[156:512]):06o}\0 ".encode()
    part = b"%011o\0%011o\0" % (1, 1)
    return bytes(first) + (part * 21 + b"\1" + bytes(7)) * blocks


HEADER_BOMBS = {
    "one long header": lambda: _header("x", tarfile.XHDTYPE, _pax("comment", 200_000_000)),
    "one long name": lambda: _header("x", tarfile.GNUTYPE_LONGNAME, b"a" * 200_000_000),
    "many headers for all": lambda: b"".join(
        _header("x", tarfile.XGLTYPE, _pax(f"key{number}", 900_000)) for number in range(200)
    ),
    "many holes": lambda: _sparse(40_000),
    "many files": lambda: b"".join(_header(f"{number}", tarfile.REGTYPE, b"") for number in range(40_000)),
    "headers of headers": lambda: _header("x", tarfile.XHDTYPE, _pax("comment", 9)) * 10_000,
}


@pytest.mark.parametrize("bomb", HEADER_BOMBS)
def test_what_names_its_files_at_great_length_is_refused_early(unpack: Any, tmp_path: Path, bomb: str) -> None:
    """20 to 200 MB of headers in a few hundred kilobytes."""
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(HEADER_BOMBS[bomb]() + _header("a", tarfile.REGTYPE, b""), 1))
    tracemalloc.start()
    try:
        with pytest.raises(VQSegError) as refused:
            unpack(archive, tmp_path / "out", 1)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 500
    assert list(tmp_path.iterdir()) == [archive]


def test_a_zip_of_very_many_files_is_refused_early(unpack: Any, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {f"a{number:099d}": b"" for number in range(30_000)})
    tracemalloc.start()
    try:
        with pytest.raises(VQSegError, match="names and sizes"):
            unpack(archive, tmp_path / "out", 1)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("content", [{"a": bytes(2**22)}, {f"{number}": b"" for number in range(1000)}])
@pytest.mark.parametrize("kind", KINDS)
def test_what_unpacks_to_more_is_refused(unpack: Any, tmp_path: Path, kind: str, content: dict[str, bytes]) -> None:
    archive = KINDS[kind](tmp_path / kind, content)
    with pytest.raises(VQSegError, match=r"more than 0\.003 GiB"):
        unpack(archive, tmp_path / "out", 0.003)
    assert list(tmp_path.iterdir()) == [archive]
    unpack(archive, tmp_path / "out", 0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused_in_words(unpack: Any, tmp_path: Path, kind: str) -> None:
    whole, draw, refused = KINDS[kind](tmp_path / kind, CONTENT).read_bytes(), random.Random(kind), 0
    for number in range(100):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file = tmp_path / f"{number}{kind}"
        file.write_bytes(content[: draw.randrange(len(content))] if number % 2 else content)
        try:
            unpack(file, tmp_path / f"out{number}", 1)
        except VQSegError as error:
            refused += 0 < len(str(error)) < 500
    assert refused > 20


def test_a_series_in_an_archive_is_segmented(watch: Callable[..., Any], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-900, 300, (24, 20, 12)).astype(np.int16)
    write_dicom(tmp_path / "series", array, (1, 0, 0), (0, 1, 0), (9.0, 9.0, 12.0))
    archive = zipped(tmp_path / "series.zip", {file.name: file.read_bytes() for file in tmp_path.glob("series/*.dcm")})
    bomb = zipped(tmp_path / "bomb.zip", {"a": bytes(2**24)})
    with watch({"data.spacing": [12, 12, 15]}, {"open_routes": "archives", "upload_unpacked_gib": "0.01"}) as server:

        def send(file: Path) -> Any:
            form, query = {"files": (file.name, file.read_bytes())}, {"uncompress": "true"}
            return requests.put(f"{server.url}/session/", params=query, files=form, timeout=60)

        with server.leaving_nothing():
            assert send(bomb).status_code == 413
            created = send(archive)
        assert created.ok, created.text
        session = created.json()["session_id"]
        mask = server.infer("", session_id=session, output="image")
        assert mask.ok, mask.text
        assert nib.Nifti1Image.from_bytes(gzip.decompress(mask.content)).shape == array.shape
        assert server.delete(f"/session/{session}").ok
