"""What a killed process left half-written in the cache of the PACS goes; what another one writes meanwhile stays."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import APP, environment
from silent_pacs import silent_pacs

FETCH = """
import sys
from pathlib import Path

from lib.memory_guard import MemoryGuard
from lib.pacs import PACS, Series
from lib.pacs_cache import PACSCache

url, folder, uid = sys.argv[1:]
PACSCache(PACS(url), Path(folder), 1e9, MemoryGuard(None)).image(Series(uid, "1.2", "CT", {}))
"""
KILLED, LIVING = "1.2.3", "1.2.4"


def written(folder: Path) -> set[str]:
    """The series that are being written, or were."""
    return {path.name for path in folder.glob("images/.writing-*/*")}


def wait_for(folder: Path, uid: str) -> None:
    end = time.monotonic() + 300
    while uid not in written(folder):
        assert time.monotonic() < end, f"{uid} is not being written"
        time.sleep(0.05)


def test_only_what_a_killed_process_left_is_removed(app_module: Callable[..., Any], tmp_path: Path) -> None:
    pacs_cache, pacs = app_module("pacs_cache"), app_module("pacs")
    memory = app_module("memory_guard").MemoryGuard(None)

    def fetch(url: str) -> None:
        with contextlib.suppress(pacs.PACSError):  # it never says anything
            pacs_cache.PACSCache(pacs.PACS(url), tmp_path, 1e9, memory).image(pacs.Series(LIVING, "1.2", "CT", {}))

    with silent_pacs() as silent:
        command = [sys.executable, "-c", FETCH, silent.url, str(tmp_path), KILLED]
        with subprocess.Popen(command, cwd=APP, env=environment()) as process:
            wait_for(tmp_path, KILLED)
            process.kill()
        writing = threading.Thread(target=fetch, args=(silent.url,))
        writing.start()
        wait_for(tmp_path, LIVING)
        pacs_cache.PACSCache(pacs.PACS(silent.url), tmp_path, 1e9, memory)
        assert written(tmp_path) == {LIVING}
    writing.join()
