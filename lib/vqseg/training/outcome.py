"""How a training ends: its status says so in words, and a report of it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vqseg.errors import TrainingError, VQSegError
from vqseg.training.status import StatusFile

__all__ = ["told_at_the_end"]


@contextlib.contextmanager
def told_at_the_end(status: StatusFile) -> Iterator[None]:
    """Around a training. Raises what ends it, an `OSError` as `TrainingError` in words."""
    try:
        with _reported(status):
            yield
    except OSError as error:
        raise TrainingError(_words_of(error, status)) from None


@contextlib.contextmanager
def _reported(status: StatusFile) -> Iterator[None]:
    # The state comes before the report: whatever happens to that, the training has ended as it has.
    try:
        yield
    except VQSegError as error:
        _end(status, "failed", str(error))
        raise
    except OSError as error:
        # Where nothing can be written, this cannot either.
        with contextlib.suppress(OSError):
            _end(status, "failed", _words_of(error, status))
        raise
    except KeyboardInterrupt:
        _end(status, "stopped", "stopped; the training can be resumed")
        raise
    except Exception as error:
        _end(status, "failed", f"{type(error).__name__}: {error}")
        raise
    status.write(remaining_seconds=0)
    _end(status, "done", "done")


def _end(status: StatusFile, state: str, message: str) -> None:
    status.write(state=state, message=message)
    try:
        # Drawings need a second to be imported, which a training has at its end.
        from vqseg.report.page import write_report

        if name := write_report(status.run):
            status.write(report=name)
    except Exception as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        with contextlib.suppress(OSError):
            status.event("report_failed", reason=words)
            status.write(message=f"{message}; no report could be written: {words}")


def _words_of(error: OSError, status: StatusFile) -> str:
    return (
        f"{status.run}: {error.strerror or error}; the live model and the last checkpoint are as they were: mend "
        "that, then train again"
    )
