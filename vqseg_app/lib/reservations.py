"""A study handed to one client is not handed to another for a while. In memory: gone when the server ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence


class Reservations:
    """Thread-safe. A client holds one study at most and is given it again, so that asking twice loses nothing."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def of_others(self, client: str) -> set[str]:
        """Studies that other clients hold now."""
        with self._lock:
            return self._of_others(client)

    def take_first(self, ranked: Sequence[str], client: str, *, keep: Collection[str] = ()) -> str | None:
        """Reserve the client's own study while it is among these or those to `keep`, else the first that no other
        client holds. None when all are held.
        """
        with self._lock:
            others = self._of_others(client)
            own = [study for study in self._held if study not in others]
            free = [study for study in ranked if study not in others]
            chosen = next((study for study in own if study in free or study in keep), free[0] if free else None)
            if chosen is not None:
                for study in own:
                    del self._held[study]
                self._held[chosen] = (client, self._clock() + self._seconds)
            return chosen

    def _of_others(self, client: str) -> set[str]:
        now = self._clock()
        self._held = {study: entry for study, entry in self._held.items() if entry[1] > now}
        return {study for study, (holder, _) in self._held.items() if holder != client}
