"""Encoders: convolutions in 2D and 3D, and DINOv2 in 2D."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from vqseg.config import Config, DINOv2
from vqseg.networks.convolution import conv_block
from vqseg.torchvision_schemas import import_transformers

__all__ = [
    "ConvEncoder",
    "DINOv2Encoder",
    "Encoder",
    "decoded_channels",
    "first_quantized_level",
    "make_encoder",
]

_DINOV2_LEVELS = 4


class Encoder(nn.Module):
    """Gives features of several levels, finest first. `channels` of each level; an image's sizes must be multiples of
    `stride`."""

    channels: tuple[int, ...]
    stride: int


def make_encoder(config: Config) -> Encoder:
    """The encoder of a configuration, with random weights."""
    if config.model.backbone == "dinov2":
        assert config.model.dinov2 is not None, "the configuration has not been planned"
        return DINOv2Encoder(config.model.dinov2)
    return ConvEncoder(config.data.spatial_dims, config.model.channels)


def first_quantized_level(config: Config) -> int:
    """All levels of a vision transformer have the same resolution, so each of them is quantised."""
    return 0 if config.model.backbone == "dinov2" else config.model.first_quantized_level


def decoded_channels(config: Config) -> tuple[int, ...]:
    """Channels of the maps that the decoders are given, finest first.

    Of a quantised map the level's own, in whole codes, or as many codes as `model.code_groups` says; without
    quantisation every level's own.
    """
    model = config.model
    if model.backbone == "dinov2":
        assert model.dinov2 is not None, "the configuration has not been planned"
        channels = [model.dinov2.hidden_size] * _DINOV2_LEVELS
    else:
        channels = list(model.channels)
    if not model.has_codebook:
        return tuple(channels)
    channels = channels[first_quantized_level(config) :]
    return tuple(model.code_dim * (model.code_groups or max(1, count // model.code_dim)) for count in channels)


class ConvEncoder(Encoder):
    """Two convolutions a level; every level after the first halves the resolution with a strided convolution.

    Args: `dims` 2 or 3; `channels` of each level, finest first.
    """

    def __init__(self, dims: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.stride = tuple(channels), 2 ** (len(channels) - 1)
        levels = [nn.Sequential(conv_block(dims, 1, channels[0]), conv_block(dims, channels[0], channels[0]))]
        for inputs, outputs in itertools.pairwise(channels):
            levels.append(
                nn.Sequential(conv_block(dims, inputs, outputs, stride=2), conv_block(dims, outputs, outputs))
            )
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of each level from `image` (B, 1, *spatial); level l has the resolution *spatial / 2^l."""
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        return features


class DINOv2Encoder(Encoder):
    """transformers' Dinov2 backbone. Its four levels are layers, evenly spread, on one grid of tokens."""

    def __init__(self, architecture: DINOv2) -> None:
        super().__init__()
        transformers = import_transformers()
        depth = architecture.num_hidden_layers
        self.channels, self.stride = (architecture.hidden_size,) * _DINOV2_LEVELS, architecture.patch_size
        self.image_channels = architecture.num_channels
        self.backbone = transformers.Dinov2Backbone(
            transformers.Dinov2Config(
                **architecture.model_dump(),
                out_indices=[depth * (level + 1) // _DINOV2_LEVELS for level in range(_DINOV2_LEVELS)],
            )
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features (B, hidden_size, H / patch, W / patch) of each level, the shallowest first, from (B, 1, H, W)."""
        return list(self.backbone(image.expand(-1, self.image_channels, -1, -1)).feature_maps)
