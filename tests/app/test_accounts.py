"""A server with accounts and an identity provider: nobody gets through without a token, or with too low a role."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from builders import write_nifti
from expected_roles import ANYONE, LEAST_ROLES
from prometheus_client.parser import text_string_to_metric_families
from realm import Provider, running_realm
from servers import APP, LISTING, TINY, Server, python_module, serve

from vqseg.tokens import ROLES, AccountFile

VOXELS = np.arange(16**3).reshape(16, 16, 16)
ENDLESS = "/vqseg/events"


@dataclass
class Hospital:
    """A server with accounts: `server` carries no token."""

    server: Server
    accounts: AccountFile
    provider: Provider
    tokens: dict[str, str]
    routes: list[dict[str, Any]]

    def used_as(self, name: str) -> Server:
        return self.server.used_with(self.tokens[name])


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    accounts = AccountFile(folder / "accounts.json")
    tokens = {role: accounts.add(f"some.{role}", role) for role in ROLES}
    conf = {**TINY, "labels": "lung,tumour", "accounts": str(accounts.path)}
    with running_realm() as provider:
        variables = {
            **LISTING,
            "LISTED_ROUTES": str(folder / "routes.json"),
            "MONAI_LABEL_AUTH_ENABLE": "true",
            "MONAI_LABEL_AUTH_REALM_URI": provider.issuer,
        }
        studies = folder / "studies"
        for name in ("case", "other"):
            write_nifti(studies / f"{name}.nii.gz", VOXELS.astype(np.float32))
        more = ["--uvicorn_app", "listing_app:app"]
        with serve(
            python_module(),
            str(APP),
            studies,
            folder,
            folder,
            conf,
            more=more,
            variables=variables,
            token=tokens["admin"],
        ) as server:
            routes = json.loads((folder / "routes.json").read_text(encoding="utf-8"))
            yield Hospital(server.used_with(""), accounts, provider, tokens, routes)


def walk(hospital: Hospital) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every method of every route of the running application, with an address it answers at."""
    for route in hospital.routes:
        for method in route["methods"]:
            yield method, re.sub(r"{[^}]+}", "x", route["path"]), route


def ask(server: Server, method: str, path: str, **headers: str) -> requests.Response:
    stream = path == ENDLESS
    with requests.request(method, server.url + path, headers=server.headers | headers, timeout=60, stream=stream) as it:
        return it


def scope_of(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}


def test_the_walk_sees_the_whole_application(hospital: Hospital) -> None:
    found = {(method, route["path"]) for method, _, route in walk(hospital)}
    assert len(found) > 60
    assert {("POST", "/reload"), ("GET", "/openapi.json"), ("GET", "/static/{path:path}")} <= found
    assert {("GET", "/vqseg/ranking"), ("GET", "/ohif/{path:path}"), ("POST", "/auth/token")} <= found


def test_no_route_answers_without_a_token(hospital: Hospital) -> None:
    answered = {
        f"{method} {route['path']}"
        for method, path, route in walk(hospital)
        if ask(hospital.server, method, path).status_code != 401
    }
    assert answered == {route for route, least in LEAST_ROLES.items() if least == ANYONE}


def test_every_route_has_the_role_that_is_written_down(hospital: Hospital, app_module: Any) -> None:
    rule_for = app_module("access").rule_for
    ruled = {f"{method} {route['path']}": rule_for(scope_of(method, path)) for method, path, route in walk(hospital)}
    assert {route: rule and rule.least for route, rule in ruled.items()} == LEAST_ROLES


def test_every_route_refuses_each_role_below_its_own(hospital: Hospital) -> None:
    checked = 0
    for method, path, route in walk(hospital):
        least = LEAST_ROLES[f"{method} {route['path']}"]
        if least != ANYONE:
            for role in ROLES[: ROLES.index(least)]:
                answer = ask(hospital.used_as(role), method, path)
                assert answer.status_code == 403, (method, route["path"], role)
                assert answer.json()["detail"] == f"some.{role} is {role}; this needs {least}"
                checked += 1
    assert checked > 30


def test_every_route_lets_its_own_role_and_higher_ones_read(hospital: Hospital) -> None:
    for method, path, route in walk(hospital):
        least = LEAST_ROLES[f"{method} {route['path']}"]
        if method == "GET" and least != ANYONE:
            for role in ROLES[ROLES.index(least) :]:
                answer = ask(hospital.used_as(role), method, path)
                assert answer.status_code not in (401, 403), (route["path"], role, answer.text)


def test_the_table_and_the_application_are_about_the_same_routes(hospital: Hospital, app_module: Any) -> None:
    access = app_module("access")
    routes = {(method, route["path"]) for method, _, route in walk(hospital)}
    ruled = {(method, rule.path) for rule in access.RULES for method in rule.methods.split()}
    assert ruled - routes == set(), "rules about nothing"
    # A more general rule may be about a route, such as one for all of the viewer's files.
    assert [one for one in walk(hospital) if access.rule_for(scope_of(one[0], one[1])) is None] == []


def test_no_rule_asks_for_less_than_the_route_itself(hospital: Hospital, app_module: Any) -> None:
    access, names = app_module("access"), app_module("accounts").ROLE_NAMES
    own = {name: role for role, name in names.items()}
    for method, path, route in walk(hospital):
        if route["role"]:
            least = access.rule_for(scope_of(method, path)).least
            assert ROLES.index(least) >= ROLES.index(own[route["role"]]), (method, path)


def raw(server: Server, method: str, target: str, authorization: str | None = None) -> int:
    """A request as it is written, which no library mends."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for value in [authorization] if authorization is not None else []:
            connection.putheader("Authorization", value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


ODD_TARGETS = (
    "/nothing",
    "//info/",
    "/info//",
    "/INFO/",
    "/./info/",
    "/auth/../info/",
    "/auth/..%2finfo/",
    "/%69nfo/",
    "/info/%2e",
    "/auth//token",
    "/auth/;/info/",
    "/info/?x=/auth/",
    "/auth/%00",
    "/auth/token/x",
    "/static/../auth/x",
    "http://127.0.0.1/info/",
    "*",
)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_no_spelling_of_an_address_gets_through(hospital: Hospital, method: str) -> None:
    statuses = {target: raw(hospital.server, method, target) for target in ODD_TARGETS}
    assert {target: status for target, status in statuses.items() if status not in (400, 401)} == {}


def test_a_route_that_is_not_in_the_table_is_refused_to_everybody(hospital: Hospital) -> None:
    for target in ("/nothing", "/info/x/y", "/auth/token/x"):
        assert raw(hospital.server, "GET", target, f"Bearer {hospital.tokens['admin']}") == 404
    assert raw(hospital.server, "PATCH", "/info/", f"Bearer {hospital.tokens['admin']}") == 404
    # As without accounts, a missing slash is added.
    assert raw(hospital.server, "GET", "/info", f"Bearer {hospital.tokens['user']}") == 307
    assert raw(hospital.server, "POST", "/train", f"Bearer {hospital.tokens['user']}") == 403


def test_wrong_credentials_are_nobodys(hospital: Hospital) -> None:
    token, other = hospital.tokens["admin"], hospital.tokens["user"]

    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    right = [f"Bearer {token}", f"bearer  {token}", basic(f"some.admin:{token}")]
    assert [raw(hospital.server, "GET", "/info/", one) for one in right] == [200] * 3
    wrong = [
        "",
        token,
        "Bearer",
        "Bearer ",
        f"Token {token}",
        f"Bearer {token} x",
        f"Bearer {token[:-1]}",
        f"Bearer {token.upper()}",
        f"Bearer {other}{token}",
        "Bearer null",
        "Bearer vqseg_\xff",
        basic(f"some.user:{token}"),
        basic(f":{token}"),
        basic(token),
        basic("some.admin:"),
        basic("rita:s3cret pässword"),
        "Basic !!!",
        "Basic /w==",
        "Negotiate abc",
        f"Bearer {'a' * 8000}",
    ]
    assert {one: raw(hospital.server, "GET", "/info/", one) for one in wrong} == dict.fromkeys(wrong, 401)
    answer = ask(hospital.server, "GET", "/info/")
    assert "account" in answer.json()["detail"]
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "Basic" in answer.headers["WWW-Authenticate"]


def test_a_token_in_the_address_counts_for_nothing(hospital: Hospital) -> None:
    token = hospital.tokens["admin"]
    for query, name in itertools.product(("token", "access_token", "authorization"), ("GET", "HEAD")):
        assert raw(hospital.server, name, f"/info/?{query}={token}") == 401


def test_accounts_change_while_the_server_runs(hospital: Hospital) -> None:
    guest = hospital.server.used_with(hospital.accounts.add("guest", "user"))
    assert guest.get("/info/").status_code == 200
    hospital.accounts.remove("guest")
    assert guest.get("/info/").status_code == 401
    content = hospital.accounts.path.read_bytes()
    try:
        hospital.accounts.path.write_text("broken", encoding="utf-8")
        answer = hospital.used_as("admin").get("/info/")
        assert answer.status_code == 503
        assert str(hospital.accounts.path) not in answer.text
        login = requests.post(
            f"{hospital.server.url}/auth/token", data={"username": "a", "password": "vqseg_b"}, timeout=60
        )
        assert login.status_code == 503
    finally:
        hospital.accounts.path.write_bytes(content)
    assert hospital.used_as("admin").get("/info/").status_code == 200


def test_a_label_has_the_name_of_the_account(hospital: Hospital, tmp_path: Path) -> None:
    server = hospital.used_as("annotator")
    mask = write_nifti(tmp_path / "mask.nii.gz", (VOXELS % 3).astype(np.uint8))
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    form = {
        "params": (None, json.dumps({"label_info": names, "user": "somebody else", "client_id": "a third"})),
        "label": (mask.name, mask.read_bytes()),
    }
    address, query = f"{server.url}/datastore/label", {"image": "case"}
    refused = requests.put(address, params=query, files=form, headers=hospital.used_as("user").headers, timeout=60)
    assert refused.status_code == 403
    assert requests.put(address, params=query, files=form, headers=server.headers, timeout=60).ok
    info = server.get("/datastore/label/info", label="case", tag="final").json()
    assert info["user"] == info["client_id"] == "some.annotator"


def test_a_study_is_held_for_the_account_that_asked(hospital: Hospital) -> None:
    offered = hospital.used_as("user").post("/activelearning/uniform").json()
    assert offered["strategy"]["uniform"]["client_id"] == "some.user"


def test_a_token_of_the_identity_provider_is_an_account(hospital: Hospital) -> None:
    rita = hospital.server.used_with(hospital.provider.token())
    assert rita.get("/auth/token/valid").json()["username"] == "rita"
    assert rita.get("/info/").status_code == 200
    assert rita.delete("/train/").status_code == 403
    higher = hospital.provider.token(realm_access={"roles": ["monailabel-admin"]})
    assert hospital.server.used_with(higher).get("/model/info/x").status_code not in (401, 403)
    without = hospital.server.used_with(hospital.provider.token(realm_access={"roles": ["doctor"]}))
    assert without.get("/info/").status_code == 403
    assert "without a role" in without.get("/info/").json()["detail"]
    assert hospital.server.used_with(hospital.provider.token(aud="other")).get("/info/").status_code == 401


@pytest.mark.parametrize(
    ("username", "password", "status"),
    [
        ("some.user", "THE TOKEN", 200),
        ("some.admin", "THE TOKEN", 401),
        ("rita", "s3cret pässword", 200),
        ("rita", "wrong", 401),
        ("", "", 422),
    ],
)
def test_a_login_gives_a_token(hospital: Hospital, username: str, password: str, status: int) -> None:
    form = {"username": username, "password": password.replace("THE TOKEN", hospital.tokens["user"])}
    answer = requests.post(f"{hospital.server.url}/auth/token", data=form, timeout=60)
    assert answer.status_code == status, answer.text
    if status == 200:
        user = hospital.server.used_with(answer.json()["access_token"]).get("/auth/token/valid").json()
        assert user["username"] == username


def test_no_token_of_ours_is_told_to_the_identity_provider(hospital: Hospital) -> None:
    before = len(hospital.provider.asked)
    form = {"username": "rita", "password": hospital.tokens["user"]}
    assert requests.post(f"{hospital.server.url}/auth/token", data=form, timeout=60).status_code == 401
    assert len(hospital.provider.asked) == before


def test_who_is_refused_is_noted_with_the_study_in_the_address(hospital: Hospital) -> None:
    log = hospital.server.run / "audit.jsonl"
    assert ask(hospital.used_as("user"), "POST", "/vqseg/labels/case/0007/restore?image=decoy").status_code == 403
    line = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    assert (line["user"], line["image"], line["version"], line["status"]) == ("some.user", "case", "0007", 403)


def test_who_is_refused_is_counted_and_stands_in_the_audit_log(hospital: Hospital) -> None:
    secret, log = "vqseg_nobody-knows-this", hospital.server.run / "audit.jsonl"

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    def counted() -> float:
        text = hospital.used_as("admin").get("/vqseg/metrics").text
        counts = {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "vqseg_request_seconds_count"
        }
        return counts.get(("DELETE", "/datastore/label", "4xx"), 0.0)

    before, count = lines(), counted()
    target, header = "/datastore/label?id=case&tag=final", {"Authorization": f"Bearer {secret}"}
    for _ in range(5):
        assert ask(hospital.server, "DELETE", target, **header).status_code == 401
    assert ask(hospital.server, "DELETE", f"{target}&token={secret}").status_code == 401
    assert ask(hospital.used_as("user"), "DELETE", target).status_code == 403
    told = [(line["user"], line["status"]) for line in lines()[len(before) :]]
    route = {"client": "127.0.0.1", "method": "DELETE", "route": "/datastore/label", "image": "case"}
    assert all(line.items() >= route.items() for line in lines()[len(before) :] if line["status"] in (401, 403))
    # Whoever has no account cannot fill the log; one who has is named each time.
    assert [one for one in told if one[1] == 401] in ([(None, 401)], [])  # none: another test was refused there
    assert (None, 401) in [(line["user"], line["status"]) for line in lines() if line["route"] == "/datastore/label"]
    assert told[-1] == ("some.user", 403)
    end = time.monotonic() + 60
    while counted() < count + 7:  # each request is, when its answer was sent
        assert time.monotonic() < end
        time.sleep(0.1)
    assert secret not in log.read_text(encoding="utf-8")
    assert secret not in (hospital.server.run.parent / "server.log").read_text(encoding="utf-8")
    assert secret not in hospital.used_as("admin").get("/vqseg/metrics").text
