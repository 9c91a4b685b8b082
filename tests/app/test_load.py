"""The short form of scripts/benchmark_load: its bounds but that of time, and that it finds a server that leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from servers import ROOT


def load(*options: str) -> dict[str, Any]:
    command = [sys.executable, ROOT / "scripts" / "benchmark_load", "--minutes", "0.25", *options]
    made = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert made.stdout.startswith("{"), made.stderr
    report: dict[str, Any] = json.loads(made.stdout)
    assert made.returncode == bool(report["broken"])
    return report


@pytest.mark.slow
def test_twenty_clients_and_a_training_lose_nothing() -> None:
    report = load("--clients", "20", "--inferences", "20")
    # How long an answer took says nothing where other tests run beside.
    assert [words for words in report["broken"] if "percentile" not in words] == [], report
    assert report["labels"]["submitted"] > 20


@pytest.mark.slow
def test_a_server_that_leaks_is_found_out() -> None:
    report = load("--clients", "20", "--inferences", "20", "--leak")
    assert "memory grew by more than 100 MiB" in report["broken"], report
