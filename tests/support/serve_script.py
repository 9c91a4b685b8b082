"""`scripts/serve` as a user starts it, and what it prints."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from curl import CurlLine, read_curl
from servers import ROOT, Server, answers, environment, free_port

needs_its_environment = pytest.mark.skipif(
    Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(),
    reason="the tests run in another environment than the one that scripts/serve sets up",
)
# Its set-up has nothing to do where the tests run; should it have, it must not ask the package index.
_NO_INDEX = {"PIP_NO_INDEX": "1"}


@contextmanager
def served(
    root: Path, folder: Path, arguments: Sequence[str], conf: Mapping[str, str], *, token: str = "", seconds: int = 240
) -> Iterator[tuple[Server, list[CurlLine]]]:
    """The server that the script of the tree `root` starts from `folder`, once it answers to `token`, and the requests
    that the script prints. Fails when anything of it outlives the SIGTERM at the end; what does is killed."""
    port, log = free_port(), folder / "serve.log"
    more = [word for key, value in conf.items() for word in ("--conf", key, value)]
    command = [str(root / "scripts" / "serve"), *arguments, "--port", str(port), *more]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment() | _NO_INDEX | {"PYTHONPATH": ""},  # all is there, as for a user
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", folder, folder / "run", process, token)
    try:
        end = time.monotonic() + seconds
        while not answers(server):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"scripts/serve does not answer:\n{log.read_text(encoding='utf-8')[-4000:]}")
            time.sleep(0.2)
        printed = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
        yield server, [read_curl(shlex.split(line)[1:]) for line in printed if line.startswith("curl ")]
        server.delete("/train/")
        server.delete("/scoring/")
        process.terminate()
        process.wait(30)
        psutil.wait_procs(_started_with(process), timeout=30)
        # Asked anew: one that has ended may be a zombie for long, where nobody takes up the orphans of a container.
        if left := _started_with(process):
            pytest.fail(f"this outlives scripts/serve: {left}")
    finally:
        for left in _started_with(process):
            left.kill()
        process.wait(10)


def _started_with(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of its session, itself among them, that run."""
    found = []
    for one in psutil.process_iter(["status"]):
        try:
            if os.getsid(one.pid) == process.pid and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one)
        except (ProcessLookupError, PermissionError):
            continue
    return found
