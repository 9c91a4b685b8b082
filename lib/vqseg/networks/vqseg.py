"""The network: encoder, one quantiser for all levels, and two decoders on the same quantised features.

What is quantised: every level from `first_quantized_level` on. Each is projected to tokens of D dimensions, and the
tokens of all levels, coarse ones last, go through one codebook. What reaches the decoders unquantised: nothing. Levels
finer than `first_quantized_level` only feed coarser levels, so the decoders cannot go round the perturbation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqseg.config import Config
from vqseg.networks.decoders import ConvDecoder
from vqseg.networks.encoders import ConvEncoder
from vqseg.networks.perturbation import QPM
from vqseg.networks.quantizer import SimVQ, straight_through

__all__ = ["Output", "VQSeg"]

Perturb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Output:
    """Result of a forward pass.

    `logits` (B, L + 1, *spatial); `image` (R, 1, *spatial), the reconstruction of the first R images, or none;
    `indices` (B, N) int64, the nearest codes before any perturbation; `tokens` (B, N, D); `codes` (B, N, D), the
    nearest codes with gradient to the codebook.
    """

    logits: Tensor
    image: Tensor | None
    indices: Tensor
    tokens: Tensor
    codes: Tensor


class VQSeg(nn.Module):
    """Segmentation network with a quantised bottleneck on every path from the image to the result."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, dims = config.model, config.data.spatial_dims
        self.dims = dims
        self.first_level = model.first_quantized_level
        self._stride = model.stride
        self.encoder = ConvEncoder(dims, model.channels)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.project = nn.ModuleList(
            conv(channels, model.code_dim, 1) for channels in model.channels[self.first_level :]
        )
        self.token_norm = nn.LayerNorm(model.code_dim, elementwise_affine=False)
        self.quantizer = SimVQ(model.codebook_size, model.code_dim)
        self.qpm = QPM(config.perturbation.rate, config.perturbation.replacement_codes)
        outputs = len(config.data.labels) + 1
        self.segmentation = ConvDecoder(dims, model.channels, self.first_level, model.code_dim, outputs)
        self.reconstruction = ConvDecoder(
            dims, [max(1, channels // 2) for channels in model.channels], self.first_level, model.code_dim, 1
        )

    @property
    def stride(self) -> int:
        """Every spatial size of an image must be a multiple of this."""
        return self._stride

    def forward(self, image: Tensor, perturb: Perturb | None = None, *, reconstruct: int = 0) -> Output:
        """Segment `image` (B, 1, *spatial).

        The first `reconstruct` images of the batch are also reconstructed. `perturb(indices, codebook)` returns the
        indices that the decoders see instead of the nearest ones. A replaced code passes no gradient to its token: the
        token did not choose it.
        """
        maps = [p(f) for p, f in zip(self.project, self.encoder(image)[self.first_level :], strict=True)]
        tokens = self.token_norm(torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2).float())
        nearest = self.quantizer(tokens)
        seen = straight_through(tokens, nearest.codes)
        if perturb is not None:
            replaced = perturb(nearest.indices, nearest.codebook)
            seen = torch.where((replaced == nearest.indices)[..., None], seen, nearest.codebook.detach()[replaced])
        sizes = [m.shape[2:] for m in maps]
        flat = seen.transpose(1, 2).split([size.numel() for size in sizes], 2)
        quantized = [part.unflatten(2, size) for part, size in zip(flat, sizes, strict=True)]
        return Output(
            self.segmentation(quantized),
            self.reconstruction([part[:reconstruct] for part in quantized]) if reconstruct else None,
            nearest.indices,
            tokens,
            nearest.codes,
        )
