"""Checkpoints: a folder each, and a pointer to the newest; the one before it is kept.

    <checkpoints>/newest.json              names of the newest checkpoint and the one before
    <checkpoints>/00000150/student.safetensors, teacher.safetensors, state.pt, sums.json

`state.pt` holds tensors and plain values only and is loaded with `weights_only=True`.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from vqseg.files import new_folder, read_json, sha256, write_json

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_POINTER, _SUMS, _STATE = "newest.json", "sums.json", "state.pt"


@dataclass(frozen=True)
class Checkpoint:
    """`step` steps are done; `state` holds what is neither student nor teacher: optimiser, settings, best score."""

    step: int
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then point at it, then remove all but it and the one before.

    Raises `OSError`, on a full disk too, where torch and safetensors would raise something else.
    """
    name = f"{checkpoint.step:08d}"
    shutil.rmtree(folder / name, ignore_errors=True)
    with new_folder(folder / name) as new:
        for part in ("student", "teacher"):
            tensors = {key: value.contiguous() for key, value in getattr(checkpoint, part).items()}
            (new / f"{part}.safetensors").write_bytes(save(tensors))
        state = io.BytesIO()
        torch.save({"step": checkpoint.step, **checkpoint.state}, state)
        (new / _STATE).write_bytes(state.getbuffer())
        write_json(new / _SUMS, {file.name: sha256(file) for file in sorted(new.iterdir())})
    before = [old for old in _names(folder) if old != name]
    kept = [name, *before[:1]]
    write_json(folder / _POINTER, kept)
    for path in folder.glob("[0-9]*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or none. A damaged one is passed over for the one before."""
    for name in _names(folder):
        path = folder / name
        sums = read_json(path / _SUMS)
        try:
            if not sums or any(sha256(path / file) != digest for file, digest in sums.items()):
                continue
            state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, UnpicklingError):
            continue
        student, teacher = (load_file(path / f"{part}.safetensors") for part in ("student", "teacher"))
        return Checkpoint(state.pop("step"), student, teacher, state)
    return None


def _names(folder: Path) -> list[str]:
    """Names of the checkpoints, newest first: those the pointer knows, then, should it be damaged, all others."""
    pointer = read_json(folder / _POINTER)
    present = sorted((path.name for path in folder.glob("[0-9]*")), reverse=True)
    known = [name for name in pointer if name in present] if isinstance(pointer, list) else []
    return [*known, *(name for name in present if name not in known)]
