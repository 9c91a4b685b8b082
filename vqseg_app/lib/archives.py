"""Archives that a client sends: unpacked into one folder, up to a size, and nothing but files of data."""

from __future__ import annotations

import gzip
import importlib.machinery
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from vqseg.errors import ConfigError

from .errors_over_rest import TooLargeError, disk_fault

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
# What Python runs when it finds it in the right place: no scan has such a name, and no folder here is to be that place.
PROGRAMS = (*importlib.machinery.all_suffixes(), ".pth")
_GIB = 2**30
# An empty file takes room, too, and a small archive may hold millions.
_LEAST_BYTES = 4096
# Names and sizes of the entries, which do not say how long they are before they are read: in a tar those of one, and of
# all; in a zip of all. Of ten thousand slices they are 10 MiB, and in a zip, where each takes more memory, one.
_LARGEST_HEADER = 2**20
_LARGEST_HEADERS = 16 * 2**20
_LARGEST_DIRECTORY = 4 * 2**20
_GZIP = b"\x1f\x8b"


def unpack(archive: Path, folder: Path, largest_gib: float) -> None:
    """Raises `ConfigError` for an archive that cannot be read or holds anything but files of data in itself, and
    `TooLargeError`, both before anything is unpacked."""
    try:
        # Opened once: what was looked at is what is unpacked, and not what the archive's name or another look says.
        with archive.open("rb") as file:
            if zipfile.is_zipfile(file):
                listed = _Listed(file, _LARGEST_DIRECTORY, _LARGEST_DIRECTORY)
                with zipfile.ZipFile(cast(Any, listed)) as opened:
                    _check(((entry.filename, entry.file_size) for entry in opened.infolist()), largest_gib)
                    folder.mkdir()
                    listed.is_limited = False
                    opened.extractall(folder)
            else:
                listed = _Listed(_without_gzip(file), _LARGEST_HEADER, _LARGEST_HEADERS)
                with _tar(listed) as tar:
                    _check(_files_of(tar), largest_gib)
                    folder.mkdir()
                    listed.is_limited = False
                    tar.extractall(folder, filter="data")
    # The last one: encrypted, or packed in a way that is not known here.
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, OSError, EOFError, ValueError, RuntimeError) as cause:
        if disk_fault(cause):
            raise
        raise ConfigError(f"the archive cannot be read ({cause})") from None


def check_no_program(name: str) -> None:
    """Raises `ConfigError` for the name of a file that Python would import."""
    if name.lower().endswith(PROGRAMS):
        raise ConfigError(f"{name[:100]!r} is a program: expected images")


def _check(entries: Iterator[tuple[str, int]], largest_gib: float) -> None:
    """Names and unpacked sizes are taken one after the other: the next one may lie behind gigabytes."""
    total = 0
    for name, size in entries:
        place = PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts:
            raise ConfigError(f"the archive has an entry outside of itself: {name[:100]!r}")
        check_no_program(name)
        total += max(size, _LEAST_BYTES)
        if total > largest_gib * _GIB:
            words = f"the archive holds more than {largest_gib:g} GiB (--conf upload_unpacked_gib)"
            raise TooLargeError(words)


def _files_of(tar: tarfile.TarFile) -> Iterator[tuple[str, int]]:
    for member in tar:
        if not (member.isfile() or member.isdir()):
            raise ConfigError(f"the archive holds a link or a device: {member.name[:100]!r}")
        yield member.name, member.size


class _Listed:
    """An archive as Python's readers read it: while it is listed, no more than names and sizes, for content is skipped.

    Args: `largest_read` bytes in one piece, and `largest` in all.
    """

    def __init__(self, file: IO[bytes], largest_read: int, largest: int) -> None:
        self._file, self._largest_read, self._largest = file, largest_read, largest
        self._read, self.is_limited = 0, True

    def read(self, size: int = -1) -> bytes:
        if not self.is_limited:
            return self._file.read(size)
        # What is asked for may be more memory than there is, or all that there is.
        content = self._file.read(min(size, self._largest_read + 1) if size >= 0 else self._largest_read + 1)
        self._read += len(content)
        if len(content) > self._largest_read or self._read > self._largest:
            raise TooLargeError("the names and sizes of what is in the archive alone take too much memory to be read")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _without_gzip(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    is_packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=file)) if is_packed else file


def _tar(listed: _Listed) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=cast(Any, listed), mode="r:")
    except tarfile.TarError:
        raise ConfigError("expected a zip or tar archive (uncompress)") from None
