"""Files of this program that browsers may have."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

# Asked for anew each time: after an update of the server no browser goes on with an old script.
FRESH = {"Cache-Control": "no-cache"}


@functools.cache
def files_below(folder: Path) -> Mapping[str, Path]:
    """What may be sent, by path below the folder: nothing else in a request leads to a file."""
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
