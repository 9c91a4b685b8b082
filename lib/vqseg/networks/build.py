"""The network of a configuration."""

from __future__ import annotations

from vqseg.config import Config
from vqseg.networks.network import Network
from vqseg.networks.unet import UNet
from vqseg.networks.vqseg import VQSeg

__all__ = ["build_network"]


def build_network(config: Config) -> Network:
    """A network with random weights, as `config.model` says."""
    return VQSeg(config) if config.model.has_codebook else UNet(config)
