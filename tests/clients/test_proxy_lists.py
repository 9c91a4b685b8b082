"""Nothing but reading DICOMweb reaches the PACS through the viewer's proxy, as a PACS that keeps a record tells."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from servers import APP, Server, python_module, serve

ROOT = "/orthanc/dicom-web"
READING = re.compile(rf"GET {ROOT}/(studies|series|instances)[\w./,-]*(\?[^ ]*)?")
STUDY, SERIES = "1.2.3", "1.2.3.4"

HOSTILE = [
    "",
    "/",
    "tools/execute-script",
    "../tools/execute-script",
    "%2e%2e/tools/execute-script",
    "%252e%252e/%252e%252e/system",
    "..%2f..%2fsystem",
    "wado/../../tools/execute-script",
    "wado/..%2f..%2ftools%2fexecute-script",
    "wado/%2e%2e/%2e%2e/system",
    "wado/%252e%252e/%252e%252e/system",
    "wado/%25252e%25252e/system",
    "wado/studies/../../system",
    "wado/studies/1/../../../system",
    "wado/studies/1%2f..%2f..%2f..%2fsystem",
    "wado/studies/1/series/2/instances/3/bulk/../../../../../../../system",
    "wado/studies/1/series/2/instances/3/bulk/%2e%2e/%2e%2e/system",
    "wado/studies/1/series/2/instances/3/frames/1/../../system",
    "wado/studies/1;/system",
    "wado/studies\\..\\..\\system",
    "wado/studies/1%00/system",
    "wado/studies/1%0d%0aHost:%20evil",
    "wado/studies/1 HTTP/1.1%0d%0aX: y",
    "wado//system",
    "wado/./system",
    "wado/.../system",
    "qido/patients",
    "qido/changes",
    "qido/statistics",
    "qido/studies/1/archive",
    "qido/http://127.0.0.1:1/studies",
    "qido/@127.0.0.1/studies",
    "stow/studies",
    "wado/studies/1/series/2/instances/3/reconstruct",
    "wado/instances/3/modify",
    "wado/modalities/sample/store",
    "wado/STUDIES",
    "\u2025/system",
    "wado/studies/\u2025/\u2025/system",
]


@dataclass
class Record:
    """What a PACS was asked, as it came over the wire."""

    url: str = ""
    lines: list[str] = field(default_factory=list)


class _Recording(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        record: Record = self.server.record  # type: ignore[attr-defined]
        record.lines.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def record() -> Iterator[Record]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Recording)
    server.record = Record(f"http://127.0.0.1:{server.server_address[1]}{ROOT}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.record  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def proxy(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("proxy")
    with serve(python_module(), str(APP), record.url, folder, folder, {"labels": "lung"}) as server:
        yield server


def ask(server: Server, method: str, path: str) -> int:
    """Status of a request whose path goes over the wire as it is."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    connection._encode_request = lambda request: request.encode()  # type: ignore[attr-defined]
    try:
        connection.putrequest(method, f"/proxy/dicom/{path}", skip_accept_encoding=True)
        connection.endheaders()
        return connection.getresponse().status
    except http.client.HTTPException:
        return 0  # the server hung up on it
    finally:
        connection.close()


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])
def test_nothing_else_gets_past_the_list(proxy: Server, record: Record, method: str, path: str) -> None:
    before = len(record.lines)
    status = ask(proxy, method, path)
    assert status == 0 or 400 <= status < 500
    assert all(reads_only(line) for line in record.lines[before:])


def test_what_the_viewer_needs_does(proxy: Server, record: Record) -> None:
    """The record works, or the test above could not fail."""
    for path in ("qido/studies?limit=5", f"wado/studies/{STUDY}/series/{SERIES}/metadata"):
        assert ask(proxy, "GET", path) == 200
        assert record.lines[-1] == f"GET {ROOT}/{path.partition('/')[2]}"
        assert reads_only(record.lines[-1])
    assert not reads_only(f"GET {ROOT}/studies/%2e%2e/system")
    assert not reads_only("POST /tools/execute-script")


def reads_only(line: str) -> bool:
    return READING.fullmatch(line) is not None and ".." not in unquote(unquote(line))
