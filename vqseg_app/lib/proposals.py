"""Which model version made the mask that a client was sent last of an image.

No client sends it back with the mask that it corrects: Slicer says `model` and `client_id`, the stock OHIF neither. It
is kept in a file, for a mask may be corrected while the server starts anew.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from vqseg.files import new_file

logger = logging.getLogger(__name__)

_MOST = 20_000


class Proposals:
    """Thread-safe. A client has several names: what it calls itself, and its address, which colleagues may share.

    Args: `file` of one process alone, a line for each mask that is sent; none keeps them in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._sent: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock, self._file = threading.Lock(), None
        if file is not None and file.exists():
            for image, version, *clients in _lines(file):
                self.note(image, version, *clients)
            self._shorten(file)
        self._file = file

    def note(self, image: str, version: str, *clients: str | None) -> None:
        """A client of these names was sent a mask of `image` that `version` made."""
        names = [client for client in clients if client]
        with self._lock:
            for client in names:
                self._sent[image, client] = version
                self._sent.move_to_end((image, client))
            while len(self._sent) > _MOST:
                self._sent.popitem(last=False)
            if self._file is None:
                return
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([image, version, *names]) + "\n")
            except OSError as error:
                logger.warning("after a new start it is not known that %s made a mask: %s", version, error.strerror)

    def version(self, image: str, *clients: str | None) -> str | None:
        """The version whose mask of `image` was sent last to the first of these names that any was sent to."""
        with self._lock:
            return next((self._sent[image, name] for name in clients if name and (image, name) in self._sent), None)

    def _shorten(self, file: Path) -> None:
        """Write what is still known alone: the file grows until the next start."""
        try:
            with new_file(file) as temporary, temporary.open("w", encoding="utf-8") as written:
                for (image, client), version in self._sent.items():
                    written.write(json.dumps([image, version, client]) + "\n")
        except OSError as error:
            logger.warning("%s stays as long as it is: %s", file.name, error.strerror)


def _lines(file: Path) -> Iterator[list[str]]:
    """What was noted, without a line that was cut short when a server was killed."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            noted = json.loads(line)
        except ValueError:
            continue
        if isinstance(noted, list) and len(noted) >= 2 and all(isinstance(part, str) for part in noted):
            yield noted
