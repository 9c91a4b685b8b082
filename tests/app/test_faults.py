"""The short form of scripts/benchmark_faults: what was answered with success outlives whatever ends the server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from servers import ROOT


@pytest.mark.slow
def test_faults_lose_nothing() -> None:
    command = [sys.executable, ROOT / "scripts" / "benchmark_faults", "--kills", "2", "--server-kills", "1"]
    made = subprocess.run([*command, "--flips", "10"], capture_output=True, encoding="utf-8", check=False)
    assert made.returncode == 0, made.stdout
    assert "SIGKILL of a server while labels arrive | 1 | 0 |" in made.stdout
