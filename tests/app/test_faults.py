"""The short form of scripts/benchmark_faults: what was answered with success outlives whatever ends the server."""

from __future__ import annotations

import subprocess
import sys

import pytest
from servers import ROOT


@pytest.mark.long
def test_faults_lose_nothing() -> None:
    command = [sys.executable, ROOT / "scripts" / "benchmark_faults", "--kills", "3", "--server-kills", "2"]
    made = subprocess.run([*command, "--flips", "20"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout
    assert "SIGKILL of a server while labels arrive | 2 | 0 |" in made.stdout
