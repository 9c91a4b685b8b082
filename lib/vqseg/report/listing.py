"""Which reports a run has."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["REPORTS", "list_reports"]

# Folder of a run.
REPORTS = "reports"
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z\.html")


def list_reports(run: Path) -> list[str]:
    """Names of the files in `<run>/reports` that are reports, the newest first."""
    try:
        found = [path.name for path in (run / REPORTS).iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, reverse=True)
