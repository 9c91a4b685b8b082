"""Temporary files of this process, which cannot be left for good: what a killed one left, the next server removes.

Each process has a folder of its own among the temporary files and holds a lock on it, which the system releases when
the process ends, however it ends. systemd, too, lets folders be that are locked when it removes what is old.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

_OWN = "vqseg-process-"
_PREFIX = "vqseg-"


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """As a block: a new folder, gone when the block ends."""
    return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=own_folder())


def temporary_file(suffix: str) -> Path:
    """A new file, which whoever asks for it removes."""
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=suffix, dir=own_folder())
    os.close(handle)
    return Path(name)


def own_folder() -> Path:
    """This process's folder, closed to other users; when it is made, those of processes that are gone are removed.

    uvicorn 0.54 ends by the signal that stopped it, so a server that was stopped leaves its folder, empty, to the next.
    """
    if not _made().is_dir():  # somebody cleaned up among the temporary files
        _made.cache_clear()
    return _made()


@functools.cache
def _made() -> Path:
    shared = Path(tempfile.gettempdir())
    _remove_leftovers(shared)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_OWN, dir=shared))
        with contextlib.suppress(OSError):  # a file system without locks: then nobody removes it
            fcntl.flock(_opened(folder), fcntl.LOCK_EX)
        # Before it was locked another process may have taken it for a leftover.
        if folder.is_dir():
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder


def _remove_leftovers(shared: Path) -> None:
    for folder in filter(_is_mine, shared.glob(f"{_OWN}*")):
        with contextlib.suppress(OSError):  # its process lives, or another one is removing it
            handle = _opened(folder)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _is_mine(path: Path) -> bool:
    """Whether it is a folder, not a link to one, that belongs to this process's user."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
