"""SHA-256 of images and labels: of a file whose path, size and time are known it is not worked out again."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from vqseg.files import read_json, sha256, write_json

logger = logging.getLogger(__name__)

_State = tuple[int, int]


class Checksums:
    """Thread-safe. Kept as one small file a path in `folder`, for other processes and the next start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[_State, str]] = {}

    def known(self, file: Path) -> str | None:
        """SHA-256 of the content, in hexadecimal, where it need not be worked out. Raises `OSError`."""
        state, known = _state(file), self._known.get(file) or self._stored(file)
        if known is None or known[0] != state:
            return None
        self._known[file] = known
        return known[1]

    def of(self, file: Path) -> str:
        """SHA-256 of the content, in hexadecimal. Raises `OSError` when the file cannot be read."""
        if (known := self.known(file)) is not None:
            return known
        # A file that changes while it is read has another time afterwards, and is read again.
        made = (_state(file), sha256(file))
        self._store(file, made)
        self._known[file] = made
        return made[1]

    def _stored(self, file: Path) -> tuple[_State, str] | None:
        match read_json(self._place(file)):
            case {"size": int(size), "mtime_ns": int(time), "sha256": str(checksum)}:
                return (size, time), checksum
        return None

    def _store(self, file: Path, known: tuple[_State, str]) -> None:
        (size, time), checksum = known
        try:
            write_json(self._place(file), {"size": size, "mtime_ns": time, "sha256": checksum})
        except OSError as error:  # a full disk costs time later and must not fail the request
            logger.warning("%s: its checksum is not kept (%s)", file.name, error)

    def _place(self, file: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"


def _state(file: Path) -> _State:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
