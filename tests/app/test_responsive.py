"""Whoever is slow, the disk or the PACS, others are answered: nothing that reads or writes studies runs in the event
loop, and no kind of request takes all threads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from builders import write_nifti
from servers import APP, LISTING, TINY, Server, python_module, serve
from silent_pacs import SilentPACS, silent_pacs
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from watched_servers import QUICK, publish

# Of MONAI Label, in the event loop, about tasks, the files of a model or nothing of ours: none looks at a study.
ABOUT_NO_STUDY = {
    ("GET", "/"),
    ("GET", "/favicon.ico"),
    ("GET", "/batch/infer"),
    ("DELETE", "/batch/infer"),
    ("GET", "/scoring/"),
    ("DELETE", "/scoring/"),
    ("GET", "/model/{model}"),
    ("GET", "/model/info/{model}"),
}
ANSWERED = 60  # requests to the PACS that are answered or wait, as bulkhead.py says
CHECKED = 3  # inferences that wait to be checked, beside the four that are
SECONDS = 40  # for so long the PACS may be silent
FORGOTTEN = 6  # for nearly so long a PACS that failed is not asked again


@dataclass
class Hung:
    """A server without a word from its PACS."""

    server: Server
    pacs: SilentPACS
    routes: list[dict[str, Any]]


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hung]:
    folder = tmp_path_factory.mktemp("hung")
    variables = {
        **LISTING,
        "LISTED_ROUTES": str(folder / "routes.json"),
        "MONAI_LABEL_DICOMWEB_READ_TIMEOUT": str(SECONDS),
    }
    more = ["--uvicorn_app", "listing_app:app"]
    conf = {**TINY, "labels": "lung,tumour", "infer_waiting": str(CHECKED)}
    publish(folder / "run", {"lung": 1, "tumour": 2}, QUICK)  # an inference without a model asks no PACS
    with (
        silent_pacs() as pacs,
        serve(python_module(), str(APP), pacs.url, folder, folder, conf, more=more, variables=variables) as server,
    ):
        routes = json.loads((folder / "routes.json").read_text(encoding="utf-8"))
        yield Hung(server, pacs, routes)
        pacs.over.set()


def answering(routes: list[dict[str, Any]], method: str, path: str) -> dict[str, Any]:
    """The first route that matches answers."""
    return next(one for one in routes if method in one["methods"] and compile_path(one["path"])[0].match(path))


def test_no_study_is_read_or_written_in_the_event_loop(hung: Hung, app_module: Callable[..., Any]) -> None:
    access, found = app_module("access"), set()
    for route in hung.routes:
        for method in route["methods"]:
            path = route["path"].replace("{path:path}", "x/y").replace("{", "").replace("}", "")
            rule = access.rule_for({"type": "http", "method": method, "path": path, "query_string": b"", "headers": []})
            if answering(hung.routes, method, path) is not route or (rule and rule.closed):
                continue
            if route["module"].startswith("monailabel.") and route["in_event_loop"]:
                found.add((method, route["path"]))
    assert found == ABOUT_NO_STUDY


def read_image(server: Server) -> requests.Response:
    return requests.get(f"{server.url}/datastore/image", params={"image": "1.2.3"}, timeout=SECONDS * 2)


def read_through_proxy(server: Server) -> requests.Response:
    return requests.get(f"{server.url}/proxy/dicom/wado/studies/1.2/series/1.3/metadata", timeout=SECONDS * 2)


def submit_label(server: Server) -> requests.Response:
    form = {"params": (None, "{}"), "label": ("label.nii.gz", b"no mask")}
    return requests.put(f"{server.url}/datastore/label?image=1.2.3", files=form, timeout=SECONDS * 2)


@pytest.mark.parametrize("work", [read_through_proxy, read_image, submit_label])
def test_a_silent_pacs_keeps_no_one_else_waiting(hung: Hung, work: Callable[[Server], requests.Response]) -> None:
    """starlette's pool has 40 threads."""
    hung.pacs.over.clear()
    time.sleep(FORGOTTEN)
    waits, count = [], ANSWERED + 10
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(work, hung.server) for _ in range(count)]
        end = time.monotonic() + 20
        while sum(job.done() for job in asked) < 10 and time.monotonic() < end:
            time.sleep(0.1)
        for _ in range(5):
            started = time.monotonic()
            assert hung.server.get("/info/").ok
            waits.append(time.monotonic() - started)
        refused = [job.result() for job in asked if job.done()]
        hung.pacs.over.set()
        answered = [job.result() for job in asked]
    assert max(waits) < 5
    assert len(refused) == 10
    assert {reply.status_code for reply in refused} == {503}
    assert all("are being answered already" in reply.json()["detail"] for reply in refused)
    assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
    # Nobody else is refused at once: the rest had their turn or waited for it.
    assert {reply.status_code for reply in answered if reply not in refused} <= {502, 503}
    assert 502 in {reply.status_code for reply in answered}
    # And whoever comes afterwards finds every place free.
    assert work(hung.server).status_code == 502


def infer(server: Server, patience: float = SECONDS * 2) -> requests.Response:
    return requests.post(f"{server.url}/infer/vqseg", params={"image": "1.2.3"}, timeout=patience)


def infer_and_leave(server: Server) -> None:
    with suppress(requests.Timeout):
        pytest.fail(f"answered: {infer(server, patience=1).text}")


def test_a_silent_pacs_keeps_no_more_inferences_waiting_than_the_line_holds(hung: Hung) -> None:
    """Those that are refused get their place when one of the line has left, and its answer when the PACS has failed."""
    hung.pacs.over.clear()
    time.sleep(FORGOTTEN)
    running, count = 4, 4 + CHECKED
    with ThreadPoolExecutor(3 * count) as pool:
        first = [pool.submit(infer, hung.server) for _ in range(running)]
        time.sleep(1)
        for left in [pool.submit(infer_and_leave, hung.server) for _ in range(CHECKED)]:
            left.result()
        time.sleep(1)
        asked = [pool.submit(infer, hung.server) for _ in range(count)]
        end = time.monotonic() + 20
        while sum(job.done() for job in asked) < running and time.monotonic() < end:
            time.sleep(0.1)
        started = time.monotonic()
        assert hung.server.get("/info/").ok
        assert time.monotonic() - started < 5
        refused = [job.result() for job in asked if job.done()]
        hung.pacs.over.set()
        answered = [job.result() for job in [*first, *asked] if job.result() not in refused]
    assert [reply.status_code for reply in refused] == [503] * running
    assert all("checks are waiting already" in reply.json()["detail"] for reply in refused)
    assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
    assert [reply.status_code for reply in answered] == [502] * count
    assert infer(hung.server).status_code == 502


def test_a_bulkhead_holds_so_many_for_so_long(app_module: Callable[..., Any]) -> None:
    """One runs and one waits; a third is refused at once, and the one that waits when its time is over."""
    bulkhead = app_module("bulkhead").Bulkhead("test", running=1, waiting=1, seconds=0.2)
    inside = asynccontextmanager(bulkhead.__call__)

    async def refusal() -> str:
        with pytest.raises(HTTPException) as refused:
            async with inside():
                pass
        assert refused.value.status_code == 503
        assert int((refused.value.headers or {})["Retry-After"]) > 0
        return str(refused.value.detail)

    async def crowd() -> None:
        for _ in range(3):  # whatever happens inside, the place is free again
            with suppress(ZeroDivisionError):
                async with inside():
                    waiting = asyncio.create_task(refusal())
                    await asyncio.sleep(0)
                    assert "are being answered already" in await refusal()
                    assert "have taken 0.2 s" in await waiting
                    raise ZeroDivisionError
        async with inside():
            waiting = asyncio.create_task(inside().__aenter__())
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await waiting  # its turn, once the first one is out

    asyncio.run(crowd())


def test_a_dataset_leaves_no_archive_behind(target: Any, serve_app: Any, tmp_path: Path) -> None:
    with target.leaving_nothing():
        whole = target.get("/datastore/dataset")
        part = target.get("/datastore/dataset", limit_cases=1)
    assert whole.ok
    assert 0 < len(part.content) < len(whole.content)
    assert whole.content[:2] == b"PK"
    write_nifti(tmp_path / "studies" / "case.nii.gz", np.zeros((4, 4, 4), np.float32))
    with serve_app(tmp_path / "studies", tmp_path, {"labels": "lung"}) as unlabelled:
        refused = unlabelled.get("/datastore/dataset")
        assert refused.status_code == 409
        assert "no study is labelled yet" in refused.json()["detail"]
