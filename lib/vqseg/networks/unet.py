"""The plain U-Net (Ronneberger et al., arXiv 1505.04597) of the same encoder and decoder: nothing is quantised."""

from __future__ import annotations

from torch import Tensor

from vqseg.config import Config
from vqseg.networks.decoders import make_decoder
from vqseg.networks.encoders import make_encoder
from vqseg.networks.network import Drop, Network, Output, Perturb

__all__ = ["UNet"]


class UNet(Network):
    """Encoder and decoder joined at every level. It has no codebook, so nothing can be perturbed but its features."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = make_encoder(config)
        self.stride = self.encoder.stride
        self.segmentation = make_decoder(config, self.encoder.channels, len(config.data.labels) + 1)

    def forward(
        self, image: Tensor, perturb: Perturb | None = None, *, drop: Drop | None = None, reconstruct: int = 0
    ) -> Output:
        """Segment `image` (B, 1, *spatial). It cannot reconstruct: its finest level would hand the image through."""
        assert perturb is None, "there are no codes to perturb"
        assert not reconstruct, "there is no image decoder"
        maps = self.encoder(image)
        return Output(self.segmentation(maps if drop is None else drop(maps)), None, maps)
