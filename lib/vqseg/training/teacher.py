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
    """teacher <- decay teacher + (1 - decay) student for weights and buffers; integer buffers are copied, and so is a
    buffer that holds nothing yet (nan)."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
    for value, new in zip(teacher.buffers(), student.buffers(), strict=True):
        if value.is_floating_point() and not (value.isnan().any() or new.isnan().any()):
            value.lerp_(new, 1 - decay)
        else:
            value.copy_(new)
