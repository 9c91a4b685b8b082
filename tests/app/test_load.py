"""The short form of scripts/benchmark_load: its bounds but that of time, and in the long run a server that leaks."""

from __future__ import annotations

import json
import runpy
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


def test_a_report_names_every_bound_that_it_breaks() -> None:
    kept: dict[str, Any] = {
        "statuses": {"infer": {"200": 50, "503": 3}, "info": {"200": 99, "429": 1}},
        "info_ms": {"p50": 20, "p95": 99, "max": 400},
        "labels": {"submitted": 30, "lost": []},
        "inferences": 50,
        "training": {"state": "running", "step": 7},
        "memory_growth_mb": 100,
        "file_handles_more": 5,
        "temporary_files_more": 0,
    }
    broken = runpy.run_path(str(ROOT / "scripts" / "benchmark_load"))["broken"]
    assert broken(kept, 50) == []
    worse: dict[str, tuple[Any, str]] = {
        "statuses": ({"infer": {"500": 1}, "info": {"ConnectionError": 1}}, "429 and 503: 500, ConnectionError"),
        "info_ms": ({"p95": 101}, "/info/ is over 100 ms"),
        "labels": ({"lost": ["case_01"]}, "labels were lost"),
        "inferences": (49, "fewer than 50 inferences"),
        "training": ({"state": "failed", "step": 7}, "no training ran"),
        "memory_growth_mb": (101, "memory grew by more than 100 MiB"),
        "file_handles_more": (6, "more than 5 file handles"),
        "temporary_files_more": (1, "temporary files were left"),
    }
    for key, (value, words) in worse.items():
        (found,) = broken({**kept, key: value}, 50)
        assert words in found


@pytest.mark.long
def test_a_server_that_leaks_is_found_out() -> None:
    report = load("--clients", "20", "--inferences", "20", "--leak")
    assert "memory grew by more than 100 MiB" in report["broken"], report
