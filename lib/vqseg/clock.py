"""What time it is for what expires."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

__all__ = ["latest_now"]

_STARTED, _STARTED_AT = datetime.now(timezone.utc), time.monotonic()


def latest_now() -> datetime:
    """Now, in UTC; a clock that is set back while the process runs brings nothing back that has expired."""
    passed = timedelta(seconds=time.monotonic() - _STARTED_AT)
    return max(datetime.now(timezone.utc), _STARTED + passed)
