"""The curl lines of README.md and docs/ are sent to a running server, and the routes of the prose are in its table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from curl import read_curl
from documentation import PAGES, Block, blocks, inline_code
from servers import ROOT, TINY, Server
from watched_servers import QUICK, publish

LABELS = {"lung": 1, "tumour": 2}
# A part of a line, why no test server can do what it asks for, and what is named in the refusal instead.
REFUSED = {'"device": "cuda:1"': ("it needs a second GPU", "cuda:1")}
LINES = [(block, words) for block in blocks("bash") for words in block.commands() if words[0] == "curl"]


@pytest.fixture(scope="module")
def running(watch: Any) -> Iterator[Server]:
    with watch(QUICK, TINY) as server:
        publish(server.run, LABELS, QUICK, seed=1)  # two versions, to be compared
        yield server


@pytest.fixture
def answering(running: Server) -> Iterator[Server]:
    """A server with a model, on which nothing is trained: a block begins a training of its own."""
    yield running
    running.delete("/train/")
    running.wait(lambda _: running.get("/train/", check_if_running=True).status_code == 404)


@pytest.mark.parametrize("block", dict.fromkeys(block for block, _ in LINES), ids=str)
def test_curl_lines_are_answered(
    block: Block, answering: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def address(url: str) -> str:
        path = re.sub(r"\bphantom_04\b|(?<=image=)ID\b", "case_04", url.partition(urlsplit(url).netloc)[2])
        return f"{answering.url}{path}"

    for words in block.commands():
        if words[0] == "curl":
            answer = read_curl(words[1:]).send(address)
            reason = next((reason for part, (_, reason) in REFUSED.items() if part in " ".join(words)), None)
            refused = reason is not None and answer.status_code == 400 and reason in answer.text
            assert answer.ok or refused, f"{block}: {' '.join(words)}: {answer.status_code} {answer.text[:500]}"


def test_no_reason_stands_for_nothing() -> None:
    assert [part for part in REFUSED if not any(part in " ".join(words) for _, words in LINES)] == []


ROUTES = inline_code(r"(GET|HEAD|POST|PUT|DELETE) /")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_routes_that_the_prose_names_are_there(page: Path, app_module: Any) -> None:
    rule_for, unknown = app_module("access").rule_for, []
    for named in (code for where, code in ROUTES if where == page):
        method, address = named.split()
        scope = {"type": "http", "method": method, "path": urlsplit(address).path, "query_string": b"", "headers": []}
        if rule_for(scope) is None:
            unknown.append(named)
    assert unknown == []


def test_routes_are_found_in_the_prose() -> None:
    assert len(ROUTES) > 20
