"""Archives that a client sends: unpacked into one folder, up to a size, and nothing but files."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vqseg.errors import ConfigError

from .errors_over_rest import TooLargeError, disk_fault

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_GIB = 2**30
# An empty file takes room, too, and a small archive may hold millions.
_LEAST_BYTES = 4096


def unpack(archive: Path, folder: Path, largest_gib: float) -> None:
    """Raises `ConfigError` for an archive that cannot be read or holds anything but files in itself, and
    `TooLargeError`, both before anything is unpacked."""
    try:
        total = 0
        for name, size in _entries(archive):
            place = PurePosixPath(name.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts:
                raise ConfigError(f"the archive has an entry outside of itself: {name[:100]!r}")
            total += max(size, _LEAST_BYTES)
            if total > largest_gib * _GIB:
                words = f"the archive holds more than {largest_gib:g} GiB (--conf upload_unpacked_gib)"
                raise TooLargeError(words)
        folder.mkdir()
        shutil.unpack_archive(archive, folder)
    # The last one: encrypted, or packed in a way that is not known here.
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, OSError, EOFError, ValueError, RuntimeError) as cause:
        if disk_fault(cause):
            raise
        raise ConfigError(f"the archive cannot be read ({cause})") from None


def _entries(archive: Path) -> Iterator[tuple[str, int]]:
    """Names and unpacked sizes, one after the other: the next one may lie behind gigabytes."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield from ((entry.filename, entry.file_size) for entry in opened.infolist())
        return
    if not tarfile.is_tarfile(archive):
        raise ConfigError("expected a zip or tar archive (uncompress)")
    with tarfile.open(archive) as opened:
        for member in opened:
            if not (member.isfile() or member.isdir()):
                raise ConfigError(f"the archive holds a link or a device: {member.name[:100]!r}")
            yield member.name, member.size
