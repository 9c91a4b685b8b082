"""What a block of requests costs a server: the most memory at any moment of it, and time of the processors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from servers import Server

MIB = 2**20


@dataclass
class Costs:
    """Of a process: `memory` is by how many bytes its peak lay above what it began with, `seconds` its processor time.

    Read after the block would miss what was taken and given back in it; the processor's time, unlike the clock's, is
    the same on a machine that others use too.
    """

    memory: int = 0
    seconds: float = 0.0


@contextmanager
def costs_of(server: Server) -> Iterator[Costs]:
    """Filled when the block ends. One at a time for a server: Linux keeps one peak of a process, which this resets."""
    process, costs = server.process.pid, Costs()
    before, begun = restart_peak(process), processor_seconds(process)
    yield costs
    costs.memory = peak(process) - before
    costs.seconds = processor_seconds(process) - begun


def restart_peak(process: int) -> int:
    """Let the peak be what the process has now; returns that, in bytes."""
    Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")
    return peak(process)


def peak(process: int) -> int:
    """The most bytes that were resident since the peak was restarted, or the process was."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def processor_seconds(process: int) -> float:
    """How long processors have worked for it so far."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)
