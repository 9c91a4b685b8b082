"""Answers of a network whose features are perturbed as in training: where these disagree, it knows little."""

from __future__ import annotations

import torch
from torch import Tensor

from vqseg.config import Perturbation
from vqseg.networks.dropout import drop_channels
from vqseg.networks.vqseg import Encoded, VQSeg

__all__ = ["perturbed_logits"]


def perturbed_logits(network: VQSeg, encoded: Encoded, settings: Perturbation, generator: torch.Generator) -> Tensor:
    """Logits (B, L + 1, *spatial) by one draw of what the settings perturb features with: QPM, or dropout of whole
    channels (of a network that was trained with it a sample of a posterior: Gal and Ghahramani, arXiv 1506.02142)."""
    nearest = encoded.nearest
    if settings.kind == "dropout":
        maps = [*encoded.shallow, *network.quantized_maps(encoded, nearest.indices)]
        every = torch.ones(len(encoded.tokens), dtype=torch.bool)
        dropped = drop_channels(maps, every, settings.dropout_rate, generator)
        return network.decode(dropped[: len(encoded.shallow)], dropped[len(encoded.shallow) :])
    indices = network.qpm(nearest.indices, nearest.codebook, generator)
    return network.decode(encoded.shallow, network.quantized_maps(encoded, indices))
