"""Which code made a result, for the scripts that keep results."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The commit of the code; a mark shows where code was not committed. Results that are written are no code."""
    git = ["git", "-C", str(ROOT)]
    name, changed = (
        subprocess.run([*git, *arguments], capture_output=True, encoding="utf-8", check=True).stdout.strip()
        for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "lib", "scripts"])
    )
    return name + ("-dirty" if changed else "")
