"""Feature dropout: whole channels are dropped, as UniMatch (Yang et al., arXiv 2208.09910) does. QPM replaces it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_kept_channels", "drop_channels"]


def draw_kept_channels(count: int, channels: int, rate: float, generator: torch.Generator) -> Tensor:
    """Factor (count, channels) of each channel: 0 with probability `rate`, otherwise 1 / (1 - rate)."""
    return (torch.rand(count, channels, generator=generator) >= rate).float() / (1 - rate)


def drop_channels(maps: Sequence[Tensor], rows: Tensor, rate: float, generator: torch.Generator) -> list[Tensor]:
    """Drop channels of the maps (B, C, *spatial) in the images `rows` (B,) bool; the other images stay as they are."""
    dropped = []
    for features in maps:
        factor = torch.ones(features.shape[:2])
        factor[rows] = draw_kept_channels(int(rows.sum()), features.shape[1], rate, generator)
        dropped.append(features * factor.to(features).view(*features.shape[:2], *[1] * (features.ndim - 2)))
    return dropped
