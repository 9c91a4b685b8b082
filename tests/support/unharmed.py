"""A server that was sent what harms servers, and is what it was: the same mask, bounded memory, no temporary files."""

from __future__ import annotations

from costs import MIB, peak, restart_peak
from servers import Server
from watched_servers import WatchedServer

# For what an answered request still does: the file of an answer goes after it.
_CLEAN_SECONDS = 30.0


class Unharmed:
    """How `server` was when this was made; `check` compares. `study` is one that its model can segment.

    As a block, `with Unharmed(server, "case_07", largest_mib=512): ...`, or made by a fixture that serves many tests.
    """

    def __init__(self, server: Server, study: str, largest_mib: float) -> None:
        self._server, self._study, self._largest = WatchedServer(**vars(server)), study, largest_mib
        self._mask = self._segment()
        self._files = self._server.files()
        self._memory = restart_peak(server.process.pid)

    def __enter__(self) -> Unharmed:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # what failed in the block is what matters
            self.check()

    def check(self) -> None:
        """Fails unless the study has the mask that it had, byte by byte, memory never grew beyond `largest_mib`, and
        soon there are no more temporary files than there were."""
        # First: segmenting takes memory, too.
        grown = (peak(self._server.process.pid) - self._memory) / MIB
        assert grown < self._largest, f"{grown:.0f} MiB more memory at the peak, at most {self._largest:g} are allowed"
        self._server.wait_for_no_more_than(self._files, _CLEAN_SECONDS)
        assert self._segment() == self._mask, f"{self._study} has another mask than before"

    def _segment(self) -> bytes:
        """The mask. The server removes its file after the answer: until then whoever lists files would find it."""
        with self._server.leaving_nothing():
            answer = self._server.infer(self._study, output="image")
        answer.raise_for_status()
        return answer.content
