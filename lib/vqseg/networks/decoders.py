"""Decoders, used for the segmentation and for the image on the same features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqseg.config import Config
from vqseg.networks.convolution import conv_block

__all__ = ["ConvDecoder", "DPTDecoder", "Decoder", "make_decoder"]

_DPT_CHANNELS = 64
# Size of each level's map relative to the grid of tokens.
_DPT_SCALES = (4, 2, 1, 0.5)


def make_decoder(config: Config, inputs: Sequence[int], outputs: int, *, narrower: int = 1) -> Decoder:
    """The decoder that fits the encoder of a configuration.

    Args: `inputs` channels of the maps it is given, finest first, 0 for a level that gives none; `outputs` channels of
    the result; its own channels are divided by `narrower`.
    """
    model = config.model
    if model.backbone == "dinov2":
        return DPTDecoder(inputs, max(1, _DPT_CHANNELS // narrower), outputs, model.stride)
    channels = [max(1, count // narrower) for count in model.channels]
    return ConvDecoder(config.data.spatial_dims, channels, inputs, outputs)


class Decoder(nn.Module):
    """Makes a result (B, outputs, *spatial) of the maps of several levels, finest first."""


class ConvDecoder(Decoder):
    """Goes from the coarsest level to the image's resolution, taking in one level after another.

    Args: `dims` 2 or 3; `channels` of each level, finest first; `inputs` channels of the map that each level gives, 0
    for none; `outputs` channels of the result.
    """

    def __init__(self, dims: int, channels: Sequence[int], inputs: Sequence[int], outputs: int) -> None:
        super().__init__()
        conv, transposed = ((nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))[dims - 2]
        coarsest = len(channels) - 1
        self.bottom = conv_block(dims, inputs[coarsest], channels[coarsest])
        self.upsample, self.merge = nn.ModuleList(), nn.ModuleList()
        for level in range(coarsest - 1, -1, -1):
            self.upsample.append(transposed(channels[level + 1], channels[level], 2, stride=2))
            self.merge.append(conv_block(dims, channels[level] + inputs[level], channels[level]))
        self.head = conv(channels[0], outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Result (B, outputs, *spatial) from the maps of the levels that give one, finest first."""
        remaining = list(maps)
        features = self.bottom(remaining.pop())
        for upsample, merge in zip(self.upsample, self.merge, strict=True):
            features = upsample(features)
            if remaining:
                features = torch.cat([features, remaining.pop()], 1)
            features = merge(features)
        return self.head(features)


class DPTDecoder(Decoder):
    """Dense prediction from a vision transformer (Ranftl et al., arXiv 2103.13413): each level is brought to a size of
    its own, then the levels are fused from coarse to fine.

    Args: `inputs` channels of each level's map, shallowest first; `channels` its own; `outputs` channels of the
    result; `patch` pixels along one element of the maps.
    """

    def __init__(self, inputs: Sequence[int], channels: int, outputs: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.reassemble = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in inputs)
        self.before = nn.ModuleList(_ResidualUnit(channels) for _ in inputs)
        self.after = nn.ModuleList(_ResidualUnit(channels) for _ in inputs)
        self.head = nn.Sequential(conv_block(2, channels, channels), nn.Conv2d(channels, outputs, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Result (B, outputs, H, W) from one map (B, C, H / patch, W / patch) of each level."""
        grid = maps[0].shape[2:]
        fused: Tensor | None = None
        for level in reversed(range(len(maps))):
            # One element has no variance to be normalised by.
            size = [max(2, round(length * _DPT_SCALES[level])) for length in grid]
            features = self.before[level](_resize(self.reassemble[level](maps[level]), size))
            fused = self.after[level](features if fused is None else features + _resize(fused, size))
        assert fused is not None
        full = [length * self.patch for length in grid]
        features = self.head[0](_resize(fused, [length // 2 for length in full]))
        return _resize(self.head[1](features), full)


class _ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(conv_block(2, channels, channels), conv_block(2, channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.blocks(features)


def _resize(features: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(features, list(size), mode="bilinear", align_corners=False)
