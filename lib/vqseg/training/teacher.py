"""The teacher: an exponential moving average of the student (Tarvainen and Valpola, arXiv 1703.01780)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)

__all__ = ["make_teacher", "teacher_decay", "update_teacher"]


def make_teacher(student: Network) -> Network:
    """A copy of the student that is never trained."""
    return copy.deepcopy(student).eval().requires_grad_(False)


def teacher_decay(step: int, largest: float) -> float:
    """Decay of the update after `step` steps (from 1): min(1 - 1 / step, largest); the first update is a copy."""
    return min(1 - 1 / step, largest)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay teacher + (1 - decay) student for weights and buffers; integer buffers are copied."""
    own, other = teacher.state_dict(), student.state_dict()
    for name, value in own.items():
        if value.is_floating_point() and not other[name].isnan().any():
            value.lerp_(other[name], 1 - decay) if not value.isnan().any() else value.copy_(other[name])
        else:
            value.copy_(other[name])
