"""SHA-256 of images and labels: of a file whose path, size and time are known it is not worked out again, and that of
a series of a PACS is known without its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vqseg.files import read_json, sha256, write_json

logger = logging.getLogger(__name__)

_State = tuple[int, int]


class Checksums:
    """Thread-safe. Kept as one small file a path or series in `folder`, for other processes and the next start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[_State, str]] = {}
        self._series: dict[str, str] = {}

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
        (size, time), checksum = made
        self._store(str(file), size=size, mtime_ns=time, sha256=checksum)
        self._known[file] = made
        return checksum

    def of_series(self, series: str) -> str | None:
        """What was kept for a series."""
        if series not in self._series:
            match read_json(self._place(series)):
                case {"sha256": str(checksum)}:
                    self._series[series] = checksum
        return self._series.get(series)

    def keep_series(self, series: str, file: Path) -> None:
        """Keep the checksum of the `file` of a series, which may be removed then. `series` names its state, not only
        the series. Raises `OSError` when the file cannot be read."""
        checksum = self.of(file)
        if self.of_series(series) != checksum:
            self._store(series, sha256=checksum)
            self._series[series] = checksum

    def forget_gone(self, series: Collection[str] = ()) -> None:
        """Remove what is kept, on disk, of files that are gone and of other series than these."""
        for place in self._folder.glob("[!.]*.json"):
            # What cannot be looked at or removed stays: it only takes up room.
            with contextlib.suppress(OSError):
                match read_json(place):
                    case {"of": str(name)} if name in series or Path(name).exists():
                        continue
                place.unlink()

    def _stored(self, file: Path) -> tuple[_State, str] | None:
        match read_json(self._place(str(file))):
            case {"size": int(size), "mtime_ns": int(time), "sha256": str(checksum)}:
                return (size, time), checksum
        return None

    def _store(self, name: str, **known: Any) -> None:
        try:
            write_json(self._place(name), {"of": name, **known})
        except OSError as error:  # a full disk costs time later and must not fail the request
            logger.warning("%s: its checksum is not kept (%s)", Path(name).name, error)

    def _place(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _state(file: Path) -> _State:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
