"""A scoring that is stopped over REST: the next one takes up what was done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watched_servers import QUICK

from vqseg.active.sparse_signals import SparseSignals

pytestmark = pytest.mark.slow

COUNT, LABELLED = 5, 3
# So many that a study takes about a second: some are done when the scoring is stopped, and others not.
DRAWS = 40


def wait_for(reached: Callable[[], Any], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(run: Path) -> dict[str, int]:
    """When the signals of each study were written, in nanoseconds; not those of an inference, which draws nothing."""
    times = {}
    for path in (run / "scoring" / "models").glob("*/*.npz"):
        with path.open("rb") as file:
            if SparseSignals.read(file).draws == DRAWS:
                times[path.name] = path.stat().st_mtime_ns
    return times


def test_a_stopped_scoring_goes_on_where_it_stood(watch: Any) -> None:
    with watch(QUICK, {"active.strategy": "perturbation", "active.draws": str(DRAWS)}) as server:

        def state() -> str:
            return server.get("/info/").json()["scoring"]["vqseg"]["state"]

        wait_for(lambda: len(written(server.run)) >= 2)  # the version that is live is scored by itself
        assert server.delete("/scoring/").json()["status"] == "STOPPED"
        wait_for(lambda: state() == "interrupted")
        done = written(server.run)
        assert 2 <= len(done) < COUNT
        assert server.get("/vqseg/ranking").json()["missing"] > 0

        # A mask that is asked for costs no second look at its study.
        def known() -> set[str]:
            page = server.get("/vqseg/ranking", strategy="codebook_entropy").json()
            return {study["id"] for study in page["studies"]} if page["scored"] else set()

        unlabelled = [f"case_{number:02d}" for number in range(LABELLED, COUNT)]
        asked = next(study for study in unlabelled if study not in known())
        before = known()
        server.infer(asked, output="image").raise_for_status()
        assert known() == {asked, *before}

        assert server.post("/scoring/vqseg").ok
        wait_for(lambda: state() == "done")
        after = written(server.run)
        assert len(after) == COUNT
        assert {name: after[name] for name in done} == done
        page = server.get("/vqseg/ranking").json()
        assert (page["strategy_used"], page["scored"], page["missing"]) == ("perturbation", COUNT - LABELLED, 0)
        assert "replacement codes" in page["studies"][0]["reason"]
