"""Convolutional decoder, used for the segmentation and for the image on the same quantised features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqseg.networks.encoders import conv_block

__all__ = ["ConvDecoder"]


class ConvDecoder(nn.Module):
    """Goes from the coarsest quantised level to the image's resolution, taking in one quantised level after another.

    Args: `dims` 2 or 3; `channels` of each level, finest first; `first_level` the finest quantised level; `code_dim`
    of the quantised features; `outputs` channels of the result.
    """

    def __init__(self, dims: int, channels: Sequence[int], first_level: int, code_dim: int, outputs: int) -> None:
        super().__init__()
        conv, transposed = ((nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))[dims - 2]
        coarsest = len(channels) - 1
        self.first_level = first_level
        self.bottom = conv_block(dims, code_dim, channels[coarsest])
        self.upsample, self.merge = nn.ModuleList(), nn.ModuleList()
        for level in range(coarsest - 1, -1, -1):
            self.upsample.append(transposed(channels[level + 1], channels[level], 2, stride=2))
            skip = code_dim if level >= first_level else 0
            self.merge.append(conv_block(dims, channels[level] + skip, channels[level]))
        self.head = conv(channels[0], outputs, 1)

    def forward(self, quantized: Sequence[Tensor]) -> Tensor:
        """Result (B, outputs, *spatial) from the maps (B, D, *spatial / 2^level), finest first."""
        remaining = list(quantized)
        features = self.bottom(remaining.pop())
        for upsample, merge in zip(self.upsample, self.merge, strict=True):
            features = upsample(features)
            if remaining:
                features = torch.cat([features, remaining.pop()], 1)
            features = merge(features)
        return self.head(features)
