"""Writing whole files or none: a reader never sees half of one, and a crash leaves the former one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["new_file", "new_folder", "read_json", "remove_leftovers", "sha256", "write_json"]


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends without an error."""
    _make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` (which must not exist) when the block ends without an error."""
    _make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        # A folder of its own inside: the outer one is closed to other users, and a published one must not be.
        temporary = Path(folder) / path.name
        temporary.mkdir()
        yield temporary
        # A file that is on the disk is lost all the same while the folder that names it is not.
        for written in (*temporary.rglob("*"), temporary):
            _sync(written)
        os.replace(temporary, path)
        _sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`; only for a folder whose lock is held."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with new_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any | None:
    """Content of a JSON file, or none when it does not exist or is not valid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, in a way that survives a power loss."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
