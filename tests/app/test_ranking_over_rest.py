"""`GET /vqseg/ranking`, and what clients can and cannot do to scores."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from vqseg.active.strategies import STRATEGIES
from vqseg.config import Active

POOL = {"case_05", "case_06", "case_07", "case_08", "case_09"}


def wait_until_scored(server: Any, seconds: float = 600) -> dict[str, Any]:
    """Nobody asks for it: a version that goes live is scored by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        scoring = server.get("/info/").json()["scoring"]["vqseg"]
        if scoring["state"] == "done":
            return scoring
        time.sleep(0.5)
    pytest.fail(f"not scored in {seconds} s: {scoring} {server.get('/scoring/').text}")


def test_a_new_version_is_scored_without_a_request(trained: Any, unusable: dict[str, str]) -> None:
    scoring = wait_until_scored(trained)
    assert scoring["model_version"] == trained.get("/vqseg/ranking").json()["model_version"]
    assert scoring["done"] == scoring["total"] == 10 + len(unusable)
    assert set(scoring["left_out"]) == set(unusable)


def test_the_whole_list_and_what_is_not_in_it(trained: Any, unusable: dict[str, str]) -> None:
    wait_until_scored(trained)
    page = trained.get("/vqseg/ranking", strategy="codebook_entropy", per_page=3).json()
    assert (page["strategy"], page["strategy_used"]) == ("codebook_entropy", "codebook_entropy")
    assert (page["page"], page["per_page"], len(page["studies"])) == (1, 3, 3)
    assert (page["total"], page["scored"], page["missing"]) == (5, 5, 0)
    assert set(page["left_out"]) == set(unusable)
    assert all(reason in page["left_out"][study] for study, reason in unusable.items())
    rest = trained.get("/vqseg/ranking", strategy="codebook_entropy", per_page=3, page=2).json()["studies"]
    assert {study["id"] for study in [*page["studies"], *rest]} == POOL
    assert page["studies"][0].keys() >= {"rank", "id", "score", "reason", "parts"}
    assert str(trained.studies) not in json.dumps(page)


def test_every_strategy_answers(trained: Any) -> None:
    strategies = trained.get("/info/").json()["strategies"]
    assert set(strategies) == {"random", "disagreement", *STRATEGIES}
    for name in strategies:
        page = trained.get("/vqseg/ranking", strategy=name)
        assert page.ok, page.text
        offered = trained.post(f"/activelearning/{name}", {"client_id": "one reader"})
        assert offered.ok, offered.text
        assert offered.json()["reason"]
        assert offered.json()["strategy_used"] == (Active().strategy if name == "random" else name)


def test_a_ranking_reserves_nothing(trained: Any) -> None:
    before = [trained.get("/vqseg/ranking").json()["studies"] for _ in range(2)]
    assert before[0] == before[1]
    objects = trained.get("/datastore/", output="all").json()
    trained.get("/vqseg/ranking")
    assert trained.get("/datastore/", output="all").json() == objects


def test_the_labels_that_differ_from_the_model(trained: Any) -> None:
    page = trained.get("/vqseg/ranking", strategy="disagreement").json()
    assert {study["id"] for study in page["studies"]} <= {"case_00", "case_01", "case_02"}
    assert page["studies"]
    assert {"case_03", "case_04"} <= set(page["left_out"])
    assert all("differ most at" in study["reason"] for study in page["studies"])


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"strategy": "magic"}, 404, "unknown strategy 'magic'; known: clasp_pe"),
        ({"page": 0}, 422, "greater than or equal to 1"),
        ({"page": "one"}, 422, "valid integer"),
        ({"per_page": 0}, 422, "greater than or equal to 1"),
        ({"per_page": 10**6}, 422, "less than or equal to 1000"),
        ({"page": 10**30}, 200, ""),
    ],
)
def test_wrong_queries(fresh: Any, query: dict[str, Any], status: int, words: str) -> None:
    reply = fresh.get("/vqseg/ranking", **query)
    assert reply.status_code == status
    assert words in reply.text


def test_a_scoring_of_an_unknown_strategy_is_refused(fresh: Any) -> None:
    reply = fresh.post("/scoring/vqseg", strategy="magic")
    assert reply.status_code == 404
    assert all(name in reply.json()["detail"] for name in ("'magic'", "disagreement", "codebook_entropy"))


def test_a_ranking_without_a_model(fresh: Any) -> None:
    page = fresh.get("/vqseg/ranking").json()
    assert (page["total"], page["model_version"], page["strategy_used"]) == (3, None, "uniform")
    assert "no trained model yet" in page["note"]
    refused = fresh.post("/activelearning/disagreement")
    assert refused.status_code == 409
    assert "no trained model yet" in refused.json()["detail"]


def test_what_a_client_writes_into_the_index_is_no_score(trained: Any) -> None:
    client = {"client_id": "one reader"}
    expected = trained.post("/activelearning/codebook_entropy", client).json()
    ranking = trained.get("/vqseg/ranking").json()["studies"]
    written = {"score": "best of all", "rank": -1, "reason": "because", "id": "case_00", "strategy": "none"}
    written |= {"parts": [], "path": "/etc/hostname", "model_version": "9999"}

    def put(info: str) -> requests.Response:
        query = {"image": expected["id"]}
        return requests.put(f"{trained.url}/datastore/image/info", params=query, data={"info": info}, timeout=60)

    assert put(json.dumps(written)).ok
    assert put('{"score": NaN}').status_code == 400
    again = trained.post("/activelearning/codebook_entropy", client).json()
    for key in {*written, *expected} - {"strategy", "ts"}:
        assert again[key] == expected[key], key
    assert again["strategy"]["codebook_entropy"]["client_id"] == client["client_id"]
    assert trained.get("/vqseg/ranking").json()["studies"] == ranking


def test_two_clients_at_the_same_instant_get_different_studies(trained: Any) -> None:
    with ThreadPoolExecutor(2) as threads:
        replies = list(
            threads.map(
                lambda client: trained.post("/activelearning/random", {"client_id": client}).json()["id"],
                ("client 1", "client 2"),
            )
        )
    assert len(set(replies)) == 2
