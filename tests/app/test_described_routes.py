"""Every route of the running application, asked with whatever its own description allows: no server error, no hang, and
no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import TINY
from unharmed import Unharmed
from watched_servers import QUICK, WatchedServer

EXAMPLES, SECONDS, LARGEST_MIB = 3, 5, 512
# A probe answers 503 on purpose, and the events of the dashboard have no end.
LEFT_OUT = ("/vqseg/health/ready", "/vqseg/events")
# A training may be started, and none published: the mask is compared.
ENDLESS = {**TINY, "train.steps": "100000", "train.validate_every": "100000"}


@pytest.fixture(scope="module")
def server(watch: Callable[..., Any]) -> Iterator[WatchedServer]:
    with watch(QUICK, ENDLESS) as started:
        yield started


def test_no_server_error_whatever_is_asked(server: WatchedServer, tmp_path: Path) -> None:
    described = json.loads(server.get("/openapi.json").text)["paths"]
    command = [Path(sys.executable).with_name("st"), "run", f"{server.url}/openapi.json", "--no-color", "--seed", "1"]
    command += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    command += ["--request-timeout", str(SECONDS), *(part for path in LEFT_OUT for part in ("--exclude-path", path))]
    with Unharmed(server, "case_04", LARGEST_MIB):
        made = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
        server.delete("/train/")
        server.delete("/scoring/")
    assert made.returncode == 0, made.stdout
    assert f"Tested: {sum(len(methods) for methods in described.values()) - len(LEFT_OUT)}" in made.stdout
