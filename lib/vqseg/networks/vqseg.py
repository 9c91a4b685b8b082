"""The network: encoder, one quantiser for all levels, and two decoders on the same quantised features.

What is quantised: every level from `first_quantized_level` on. Each is projected to tokens of D dimensions, and the
tokens of all levels, coarse ones last, go through one codebook. Levels finer than `first_quantized_level` feed coarser
levels alone, so the decoders cannot go round the perturbation; with `shallow_skips` they also reach the segmentation
decoder, which finds its outlines in them. The image decoder never sees them: they would hand the image through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqseg.config import Config
from vqseg.networks.decoders import make_decoder
from vqseg.networks.encoders import decoded_channels, first_quantized_level, make_encoder
from vqseg.networks.network import Drop, Network, Output, Perturb
from vqseg.networks.perturbation import QPM
from vqseg.networks.quantizer import Quantized, SimVQ, perplexity, straight_through

__all__ = ["Encoded", "VQSeg"]


@dataclass(frozen=True)
class Encoded:
    """What is known of images before anything is decoded.

    `shallow` maps that the segmentation decoder is given as they are, finest first; `sizes` of the quantised levels'
    maps; `tokens` (B, N, D) of these levels; `nearest` codes of the tokens.
    """

    shallow: list[Tensor]
    sizes: list[torch.Size]
    tokens: Tensor
    nearest: Quantized


class VQSeg(Network):
    """Segmentation network whose features from `first_quantized_level` on are quantised before they are decoded."""

    has_codebook = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, dims = config.model, config.data.spatial_dims
        self.dims, self.code_dim = dims, model.code_dim
        self.encoder = make_encoder(config)
        self.stride = self.encoder.stride
        self.first_level = first_quantized_level(config)
        quantized = self.encoder.channels[self.first_level :]
        self.quantized_channels = decoded_channels(config)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.project = nn.ModuleList(conv(*pair, 1) for pair in zip(quantized, self.quantized_channels, strict=True))
        self.token_norm = nn.LayerNorm(model.code_dim, elementwise_affine=False)
        self.quantizer = SimVQ(model.codebook_size, model.code_dim)
        self.qpm = QPM(config.perturbation.rate, config.perturbation.replacement_codes)
        nothing, shallow = [0] * self.first_level, list(self.encoder.channels[: self.first_level])
        self.shallow_skips = model.shallow_skips
        skipped = shallow if self.shallow_skips else nothing
        self.segmentation = make_decoder(config, [*skipped, *self.quantized_channels], len(config.data.labels) + 1)
        self.reconstruction = make_decoder(config, [*nothing, *self.quantized_channels], 1, narrower=2)

    def forward(
        self, image: Tensor, perturb: Perturb | None = None, *, drop: Drop | None = None, reconstruct: int = 0
    ) -> Output:
        """Segment `image` (B, 1, *spatial); the first `reconstruct` images of the batch are also reconstructed."""
        encoded = self.encode(image)
        shallow, nearest = encoded.shallow, encoded.nearest
        quantized = unperturbed = self.quantized_maps(encoded, nearest.indices)
        if perturb is not None:
            quantized = self.quantized_maps(encoded, perturb(nearest.indices, nearest.codebook))
        if drop is not None:
            dropped = list(drop([*shallow, *quantized]))
            shallow, quantized = dropped[: len(shallow)], dropped[len(shallow) :]
        return Output(
            self.decode(shallow, quantized),
            self.reconstruction([part[:reconstruct] for part in quantized]) if reconstruct else None,
            unperturbed,
            nearest.indices,
            encoded.tokens,
            nearest.codes,
        )

    def encode(self, image: Tensor) -> Encoded:
        """Tokens of `image` (B, 1, *spatial) and the codes nearest to them."""
        levels = self.encoder(image)
        shallow = levels[: self.first_level] if self.shallow_skips else []
        maps = [p(f) for p, f in zip(self.project, levels[self.first_level :], strict=True)]
        # With several codes a position: product quantisation (Jegou et al., PAMI 33, 2011).
        parts = [m.flatten(2).transpose(1, 2).reshape(len(image), -1, self.code_dim) for m in maps]
        tokens = self.token_norm(torch.cat(parts, 1).float())
        return Encoded(shallow, [m.shape[2:] for m in maps], tokens, self.quantizer(tokens))

    def quantized_maps(self, encoded: Encoded, indices: Tensor) -> list[Tensor]:
        """The codes `indices` (B, N) as one map (B, C, *size) a level.

        A code that is not the nearest one passes no gradient to its token: the token did not choose it.
        """
        nearest = encoded.nearest
        tokens = straight_through(encoded.tokens, nearest.codes)
        if indices is not nearest.indices:
            kept = (indices == nearest.indices)[..., None]
            tokens = torch.where(kept, tokens, nearest.codebook.detach()[indices])
        return [
            part.reshape(len(tokens), size.numel(), -1).transpose(1, 2).unflatten(2, size)
            for part, size in zip(tokens.split(self.tokens_by_level(encoded.sizes), 1), encoded.sizes, strict=True)
        ]

    def decode(self, shallow: Sequence[Tensor], quantized: Sequence[Tensor]) -> Tensor:
        """Logits (B, L + 1, *spatial) of the maps of the shallow and of the quantised levels, finest first."""
        return self.segmentation([*shallow, *quantized])

    def tokens_by_level(self, sizes: Sequence[torch.Size]) -> list[int]:
        """Number of tokens of each quantised level, whose maps have these `sizes`; those of a position are adjacent."""
        return [
            size.numel() * channels // self.code_dim
            for size, channels in zip(sizes, self.quantized_channels, strict=True)
        ]

    @torch.no_grad()
    def calibrate(self) -> None:
        """Fit QPM's temperature to the codebook."""
        self.qpm.calibrate(self.quantizer.codebook())

    def code_usage(self) -> Tensor:
        return self.quantizer.usage

    @torch.no_grad()
    def codebook_report(self) -> dict[str, float]:
        """Codes chosen in training so far, ever and as if alike, and how strong QPM is with the temperature in use."""
        strength = self.qpm.strength(self.quantizer.codebook())
        return {
            "codes_in_use": int((self.quantizer.usage > 0).sum()),
            "codes_as_if_alike": round(perplexity(self.quantizer.usage), 3),
            "replacement_codes": round(strength.replacement_codes, 3),
            "kl_from_uniform": round(strength.kl_from_uniform, 6),
        }
