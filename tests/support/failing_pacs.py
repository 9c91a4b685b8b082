"""Stands between a server and a PACS, and fails on demand."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


@dataclass
class Between:
    """Passes requests to `url` on to `behind`; those that match `where` meet the `fault`."""

    behind: str
    url: str = ""
    fault: str = ""
    where: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)  # on a PACS that drips

    def fail(self, fault: str, where: str = "") -> None:
        self.fault, self.where = fault, where
        self.over.clear()
        self.hung_up.clear()

    def work(self) -> None:
        self.fault = ""
        self.over.set()


class _Passing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        between: Between = self.server.between
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = between.fault if re.search(between.where, f"{self.command} {self.path}") else ""
        if fault == "silent":
            between.over.wait(60)
        if fault in ("silent", "gone"):
            return
        if fault == "login page":
            self.reply(200, "text/html", b"<html><body>Please log in</body></html>")
            return
        if fault == "broken":
            self.reply(500, "text/plain", b"out of memory")
            return
        passed = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        reply = requests.request(self.command, between.behind + self.path, data=body, headers=passed, timeout=30)
        content = reply.content
        if fault:
            content = content[: len(content) // 2]
        if fault == "one image less":
            end = reply.content.rindex(b"\r\n--")
            content = reply.content[: reply.content.rindex(b"\r\n--", 0, end)] + reply.content[end:]
        if fault == "cut at the end":
            content = reply.content[:-200]  # in the voxels of the last image
        if fault == "cut short":
            content = content[: content.rindex(b"\r\n--")]  # between two images
        length = len(reply.content) if fault == "broken off" else None
        self.reply(reply.status_code, reply.headers["Content-Type"], content, length)
        if fault == "stalling":
            self.wfile.flush()
            between.over.wait(60)
        if fault == "dripping":
            self.drip(between, reply.content[len(content) :])

    do_POST = do_GET  # noqa: N815

    def reply(self, status: int, kind: str, content: bytes, length: int | None = None) -> None:
        """Mostly without a length, as some servers do: an answer that breaks off ends like a whole one."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def drip(self, between: Between, content: bytes) -> None:
        """A byte now and then, which is never silent for long."""
        try:
            for byte in content:
                if between.over.wait(0.1):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        except OSError:
            between.hung_up.set()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def standing_before(behind: str) -> Iterator[Between]:
    """Something that answers for the PACS at the address `behind`."""
    between = Between(behind)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Passing) as listening:
        listening.daemon_threads = True
        listening.between = between
        between.url = f"http://127.0.0.1:{listening.server_address[1]}/dicom-web"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield between
        between.work()
        listening.shutdown()
