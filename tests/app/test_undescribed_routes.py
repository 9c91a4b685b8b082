"""Routes that the server's own description leaves out, so that a walk over that does not see them, asked with garbage:
no server error, no hang, and no harm."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from servers import APP, LISTING, TINY, python_module, serve
from unharmed import Unharmed
from watched_servers import QUICK, WatchedServer, publish

REQUESTS, SECONDS, LARGEST_MIB = 100, 10, 512
# What must be among them, however the routes are listed.
KNOWN = {
    ("PUT", "/datastore/"),
    ("DELETE", "/datastore/"),
    ("PUT", "/datastore/updatelabelinfo"),
    ("POST", "/train/"),
    ("POST", "/scoring/"),
    ("GET", "/proxy/dicom/{path:path}"),
    ("POST", "/proxy/dicom/{path:path}"),
}
# A training may be started, and none published: the mask is compared.
CONF = {**TINY, "train.steps": "100000", "train.validate_every": "100000"}
# Not the study that is segmented before and after: garbage may remove others.
WORDS = ["case_00", "final", "vqseg", "", " ", "0", "-1", "1e999", "true", "null", "{}", "[]", '"', "%00", "\0", "../x"]
WORDS += ["*", "\u202e\U0001f4a9", "a" * 5000, '{"label_info": 1}', '{"label_info": [{"name": [], "idx": "x"}]}']
DEEP = "[" * 5000
BODIES = ["", "{", "null", "[]", "1e999", '"a"', '{"vqseg": 1}', '{"gpus": {}}', '{"a": NaN}', '{"a": "\\ud800"}', DEEP]
BODIES += ["{}", '{"name": "../x", "data.labels": 3}', '{"vqseg": {"train.steps": []}}', '{"": {"": []}}', "a" * 70_000]
BODIES += ["[NaN]", '["\\ud800"]', b"\xff\xfe\x8b"]
TYPES = [
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
]
NAMES = ["file", "params", "image", "unknown"]


@dataclass(frozen=True)
class Route:
    """`names` are those of its query and its form."""

    method: str
    path: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    server: WatchedServer
    undescribed: list[Route]


@pytest.fixture(scope="module")
def listed(studies_in: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listed]:
    folder = tmp_path_factory.mktemp("undescribed")
    publish(folder / "run", {"lung": 1, "tumour": 2}, QUICK)
    routes, studies = folder / "routes.json", studies_in(folder / "studies")
    variables = {**LISTING, "LISTED_ROUTES": str(routes)}
    more = ["--uvicorn_app", "listing_app:app"]
    with serve(python_module(), str(APP), studies, folder, folder, CONF, more=more, variables=variables) as server:
        described = json.loads(server.get("/openapi.json").text)["paths"]
        found = {
            Route(method, one["path"], tuple(one["names"]))
            for one in json.loads(routes.read_text(encoding="utf-8"))
            for method in one["methods"]
            if method.lower() not in described.get(one["path"], {})
        }
        yield Listed(WatchedServer(**vars(server)), sorted(found, key=str))


def some_form(draw: random.Random, route: Route) -> dict[str, Any]:
    """Fields and files of a form, some of them those that the route asks for."""
    form: dict[str, Any] = {"data": {}, "files": {}}
    for name in draw.choices([*route.names, *NAMES], k=4):
        if name == "file" or draw.random() < 0.2:
            content = draw.choice([b"", b"\x1f\x8b\x08", draw.randbytes(500)])
            form["files"][name] = draw.choice(["a.nii.gz", "a.dcm", "..", "a"]), content
        else:
            form["data"][name] = draw.choice(WORDS)
    return form


def some_request(draw: random.Random, route: Route, url: str) -> requests.PreparedRequest:
    path = re.sub(r"{[^}]+}", lambda _: quote(draw.choice(WORDS), safe="/"), route.path)
    if "{path:path}" in route.path and draw.random() < 0.5:
        service, asked = draw.choice(["qido", "wado", "stow", "x"]), draw.choice(["1.2.3", "1.2.3/series", "", ".."])
        path = route.path.replace("{path:path}", f"{service}/studies/{asked}")
    # Most of what a route needs, so that it is not only refused for what is missing.
    query = [(name, draw.choice(WORDS)) for name in route.names if draw.random() < 0.8]
    query += [(draw.choice(NAMES), draw.choice(WORDS)) for _ in range(draw.randrange(3))]
    if draw.random() < 0.5:
        made = requests.Request(route.method, url + path, params=query, **some_form(draw, route))
    else:
        headers = {"Content-Type": draw.choice(TYPES)}
        made = requests.Request(route.method, url + path, params=query, headers=headers, data=draw.choice(BODIES))
    return made.prepare()


def test_they_are_found(listed: Listed) -> None:
    assert {(one.method, one.path) for one in listed.undescribed} >= KNOWN


def test_no_server_error_whatever_is_asked(listed: Listed) -> None:
    draw, server = random.Random(1), listed.server
    with Unharmed(server, "case_04", LARGEST_MIB), requests.Session() as session:
        for route in listed.undescribed:
            for _ in range(REQUESTS):
                made = some_request(draw, route, server.url)
                answer = session.send(made, timeout=SECONDS, allow_redirects=False)
                # Of a PACS, where there is none: 502 in words.
                is_expected = answer.status_code < 500 or "there is no PACS" in answer.text
                assert is_expected, (route, made.url[:300], made.headers, made.body, answer.text)
        server.delete("/train/")
        server.delete("/scoring/")
