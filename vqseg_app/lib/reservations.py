"""A study handed to one client is not handed to another for a while. In memory: gone when the server ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence


class Reservations:
    """Thread-safe. The same client is given its own study again, so that asking twice loses nothing."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def of_others(self, client: str) -> set[str]:
        """Studies that other clients hold now."""
        with self._lock:
            return self._of_others(client)

    def take_first(self, ranked: Sequence[str], client: str) -> str | None:
        """Reserve the first study that no other client holds; none when all are held."""
        with self._lock:
            held = self._of_others(client)
            for study in ranked:
                if study not in held:
                    self._held[study] = (client, self._clock() + self._seconds)
                    return study
            return None

    def _of_others(self, client: str) -> set[str]:
        now = self._clock()
        self._held = {study: entry for study, entry in self._held.items() if entry[1] > now}
        return {study for study, (holder, _) in self._held.items() if holder != client}
