"""Which model version made the mask that a client was sent last of an image.

No client sends it back with the mask that it corrects: Slicer says `model` and `client_id`, the stock OHIF neither. In
memory: after a new start of the server the origin of a mask sent before is not known.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

_MOST = 20_000


class Proposals:
    """Thread-safe. A client has several names: what it calls itself, and its address, which colleagues may share."""

    def __init__(self) -> None:
        self._sent: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, image: str, version: str, *clients: str | None) -> None:
        """A client of these names was sent a mask of `image` that `version` made."""
        with self._lock:
            for client in filter(None, clients):
                self._sent[image, client] = version
                self._sent.move_to_end((image, client))
            while len(self._sent) > _MOST:
                self._sent.popitem(last=False)

    def version(self, image: str, *clients: str | None) -> str | None:
        """The version whose mask of `image` was sent last to the first of these names that any was sent to."""
        with self._lock:
            return next((self._sent[image, name] for name in clients if name and (image, name) in self._sent), None)
