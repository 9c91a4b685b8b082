"""Convolutional encoder, 2D and 3D."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["ConvEncoder", "conv_block"]


def conv_block(dims: int, inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, instance norm and leaky ReLU."""
    conv: type[nn.Module] = (nn.Conv2d, nn.Conv3d)[dims - 2]
    norm: type[nn.Module] = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
    return nn.Sequential(
        conv(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        norm(outputs, affine=True),
        nn.LeakyReLU(0.01, inplace=True),
    )


class ConvEncoder(nn.Module):
    """Two convolutions a level; every level after the first halves the resolution with a strided convolution.

    Args: `dims` 2 or 3; `channels` of each level, finest first.
    """

    def __init__(self, dims: int, channels: Sequence[int]) -> None:
        super().__init__()
        levels = [nn.Sequential(conv_block(dims, 1, channels[0]), conv_block(dims, channels[0], channels[0]))]
        for inputs, outputs in itertools.pairwise(channels):
            levels.append(
                nn.Sequential(conv_block(dims, inputs, outputs, stride=2), conv_block(dims, outputs, outputs))
            )
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of each level, finest first, from `image` (B, 1, *spatial)."""
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        return features
