"""Progress of long work on the command line: a bar on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from tqdm import tqdm

__all__ = ["image_bar", "progress_report"]


def image_bar(items: list, name: str) -> Iterable:
    """The items, one after another, with a bar on a terminal."""
    return tqdm(items, desc=name, unit="image", disable=not sys.stderr.isatty())


@contextmanager
def progress_report(steps: int, name: str = "train", unit: str = "step") -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that is told a status with `step` and `message`, out of so many `steps`."""
    if not sys.stderr.isatty():
        yield lambda status: click.echo(json.dumps(status), err=True)
        return
    with tqdm(total=steps, desc=name, unit=unit) as shown:

        def report(status: dict[str, Any]) -> None:
            shown.n = status["step"]
            best = status.get("best_metric")
            shown.set_postfix_str(status["message"] if best is None else f"best Dice {best:.4f}")

        yield report
