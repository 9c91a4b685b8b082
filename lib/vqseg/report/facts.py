"""What a report says of a training besides its events: written when it begins, to `<run>/last_training/facts.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqseg.files import read_json, write_json

__all__ = ["Facts", "read_facts", "write_facts"]

_FILE = Path("last_training") / "facts.json"


@dataclass(frozen=True)
class Facts:
    """`training` is its name. Of the studies validated on: whether they are `locked`, which is to say not trained
    on, and in words what they are. `manifest` holds settings, data and software; it does not tell `unlabelled` studies
    that are trained on, counted here, from labelled ones that are used without their masks."""

    training: str
    locked: bool
    validated_on: str
    manifest: dict[str, Any]
    unlabelled: int


def write_facts(run: Path, facts: Facts) -> None:
    """Take the place of those of the training before."""
    write_json(run / _FILE, asdict(facts))


def read_facts(run: Path) -> Facts | None:
    """Those of the last training; none where there is none, or the file is damaged."""
    content = read_json(run / _FILE)
    try:
        return Facts(**content) if isinstance(content, dict) else None
    except TypeError:
        return None
