"""A clock of its own for a server and its children, which can be set back while they run."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class OtherClock:
    """`variables` of the environment give it to a process."""

    folder: Path

    def __post_init__(self) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler (cc), and what comes before libc is written in C")
        source = Path(__file__).with_name("set_back.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self._library, source], check=True)

    @property
    def variables(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_SET_BACK": str(self._seconds)}

    def set_back(self, seconds: int) -> None:
        self._seconds.write_text(str(seconds), encoding="ascii")

    @property
    def _library(self) -> Path:
        return self.folder / "set_back.so"

    @property
    def _seconds(self) -> Path:
        return self.folder / "seconds_back"
