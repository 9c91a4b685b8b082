"""What is closed with every option at its default, and what opens it; no account is needed for this."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from builders import write_nifti
from servers import APP, TINY, Server, python_module, serve

VIEWER = "https://viewer.example.org"
CLOSED = {
    ("POST", "/reload"): "reload",
    ("PUT", "/model/vqseg"): "model_files",
    ("DELETE", "/model/vqseg"): "model_files",
    ("GET", "/logs/"): "logs",
    ("GET", "/logs"): "logs",
    ("GET", "/logs/gpu"): "logs",
    ("POST", "/infer/wsi/vqseg"): "slides",
    ("POST", "/infer/wsi_v2/vqseg"): "slides",
    ("PUT", "/session/?uncompress=true"): "archives",
}
# Whatever pydantic takes for true, however it is written.
UNPACKED = ("uncompress=1", "uncompress=TRUE", "uncompress=on", "uncompress=yes", "uncompress=t", "uncompress=Y")
UNPACKED += (
    "uncompres%73=%74rue",
    "uncompress=false&uncompress=true",
    "a=b&uncompress=true",
    "uncompress=0&uncompress=1",
)


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without accounts that listens on all addresses and knows one other viewer."""
    folder = tmp_path_factory.mktemp("listening")
    write_nifti(folder / "studies" / "case.nii.gz", np.zeros((8, 8, 8), np.float32))
    conf = {**TINY, "labels": "lung", "cors_origins": f"{VIEWER},http://127.0.0.2:3000"}
    more = ["--host", "0.0.0.0"]
    with serve(python_module(), str(APP), folder / "studies", folder, folder, conf, more=more) as server:
        yield server


def test_what_nobody_needs_is_closed(fresh: Server) -> None:
    for (method, path), group in CLOSED.items():
        answer = requests.request(method, fresh.url + path, timeout=60)
        assert answer.status_code == 404, (method, path, answer.text)
        assert f"--conf open_routes {group}" in answer.json()["detail"]
    assert fresh.get("/info/").ok


def test_archives_are_closed_however_they_are_asked_for(fresh: Server, tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", np.zeros((8, 8, 8), np.float32))

    def send(query: str) -> requests.Response:
        with image.open("rb") as file:
            return requests.put(f"{fresh.url}/session/?{query}", files={"files": file}, timeout=60)

    assert {query: send(query).status_code for query in UNPACKED} == dict.fromkeys(UNPACKED, 404)
    # What Slicer does with an image of its own.
    for query in ("", "uncompress=false"):
        created = send(query)
        assert created.ok
        session = created.json()["session_id"]
        assert fresh.get(f"/session/{session}").ok
        assert fresh.delete(f"/session/{session}").ok


@pytest.fixture
def passed(app_module: Any) -> Callable[..., int]:
    """The status with which a gate in front of an application that answers 200 to everything answers."""
    gate, accounts = app_module("gate"), app_module("accounts").Accounts(None, None)

    def ask(
        method: str = "GET",
        path: str = "/info/",
        *,
        server: Any = ("127.0.0.1", 8000),
        opened: tuple[str, ...] = (),
        open_network: bool = False,
        **headers: str,
    ) -> int:
        path, _, query = path.partition("?")
        sent: list[Any] = []

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "server": server,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        options = gate.Options({}, open_routes=frozenset(opened), open_network=open_network)
        asyncio.run(gate.Gate(application, accounts=accounts, options=options)(scope, None, send))
        return int(sent[0]["status"])

    return ask


def test_an_option_opens_its_own_routes_alone(passed: Callable[..., int]) -> None:
    for group in CLOSED.values():
        for (method, path), own in CLOSED.items():
            assert passed(method, path, opened=(group,)) == (200 if own == group else 404)
    assert all(passed(method, path, opened=tuple(CLOSED.values())) == 200 for method, path in CLOSED)


@pytest.mark.parametrize(
    ("server", "status"),
    [
        (("127.0.0.1", 8000), 200),
        (("127.8.9.1", 8000), 200),
        (("::1", 8000), 200),
        (("::ffff:127.0.0.1", 8000), 200),
        (("/run/vqseg.sock", None), 200),
        (("192.168.1.7", 8000), 403),
        (("10.0.0.1", 8000), 403),
        (("::ffff:10.0.0.1", 8000), 403),
        (("fe80::1%eth0", 8000), 403),
        (("0.0.0.0", 8000), 403),
        (("localhost.example.org", 8000), 403),
        (("", 8000), 403),
        (None, 403),
    ],
)
def test_without_accounts_only_this_machine_is_answered(passed: Callable[..., int], server: Any, status: int) -> None:
    assert passed(server=server) == status
    assert passed(server=server, open_network=True) == 200
    assert passed(server=server, **{"x-forwarded-for": "127.0.0.1", "host": "127.0.0.1"}) == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("", 403),
        ("evil.example.org:8000", 403),
        ("localhost.evil.example.org", 403),
        ("127.0.0.1.evil.example.org", 403),
        ("evil.example.org@127.0.0.2.x", 403),
        ("192.168.1.7:8000", 403),
        ("[fe80::1]:8000", 403),
        ("[broken", 403),
    ],
)
def test_a_name_that_leads_to_this_machine_is_not_this_machine(
    passed: Callable[..., int], host: str, status: int
) -> None:
    assert passed(host=host) == status
    assert passed(host=host, open_network=True) == 200


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("https://server.example.org", "server.example.org", 200),
        ("https://evil.example.org", "127.0.0.1:8000", 403),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", 403),
        ("http://127.0.0.1:8000.evil.example.org", "127.0.0.1:8000", 403),
        ("http://evil.example.org@127.0.0.1:8000", "127.0.0.1:8000", 403),
        ("null", "127.0.0.1:8000", 403),
        ("http://[broken", "127.0.0.1:8000", 403),
        ("", "127.0.0.1:8000", 403),
    ],
)
def test_a_page_of_another_server_changes_nothing(
    passed: Callable[..., int], origin: str, host: str, status: int
) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert passed(method, "/train/", open_network=True, origin=origin, host=host) == status
        assert passed(method, "/train/", open_network=True, host=host) == 200  # Slicer, curl
    assert passed("GET", open_network=True, origin=origin, host=host) == 200


def test_another_machine_is_told_what_to_do(listening: Server) -> None:
    own = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not own:
        pytest.skip("this machine has no other address than loopback")
    port = listening.url.rpartition(":")[2]
    answer = requests.get(f"http://{own[0]}:{port}/info/", timeout=60)
    assert answer.status_code == 403
    assert "--conf accounts FILE" in answer.json()["detail"]
    assert listening.get("/info/").ok


def test_no_other_origin_reads_anything(fresh: Server) -> None:
    for origin in (VIEWER, "null", "http://127.0.0.1:9"):
        answer = requests.get(f"{fresh.url}/info/", headers={"Origin": origin}, timeout=60)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        asked = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
        preflight = requests.options(f"{fresh.url}/datastore/label", headers=asked, timeout=60)
        assert preflight.status_code == 405
        assert "Access-Control-Allow-Origin" not in preflight.headers


def test_a_listed_origin_reads_and_writes_without_what_a_browser_adds(listening: Server) -> None:
    answer = requests.get(f"{listening.url}/info/", headers={"Origin": VIEWER}, timeout=60)
    assert answer.headers["Access-Control-Allow-Origin"] == VIEWER
    assert "Access-Control-Allow-Credentials" not in answer.headers
    asked = {
        "Origin": VIEWER,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = requests.options(f"{listening.url}/datastore/label", headers=asked, timeout=60)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert requests.delete(f"{listening.url}/train/", headers={"Origin": VIEWER}, timeout=60).status_code != 403
    other = {"Origin": "https://evil.example.org"}
    assert requests.delete(f"{listening.url}/train/", headers=other, timeout=60).status_code == 403
    assert (
        "Access-Control-Allow-Origin" not in requests.get(f"{listening.url}/info/", headers=other, timeout=60).headers
    )
