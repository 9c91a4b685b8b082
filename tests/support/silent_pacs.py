"""A PACS that takes requests and says nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class SilentPACS:
    """`asked` counts the requests; after `over` all are ended without an answer."""

    url: str = ""
    asked: int = 0
    over: threading.Event = field(default_factory=threading.Event)


class _Silent(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pacs: SilentPACS = self.server.pacs  # type: ignore[attr-defined]
        pacs.asked += 1
        pacs.over.wait(120)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def silent_pacs() -> Iterator[SilentPACS]:
    pacs = SilentPACS()
    with _Server(("127.0.0.1", 0), _Silent) as listening:
        listening.pacs = pacs  # type: ignore[attr-defined]
        pacs.url = f"http://127.0.0.1:{listening.server_address[1]}/dicom-web"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield pacs
        finally:
            pacs.over.set()
            listening.shutdown()
            thread.join()
