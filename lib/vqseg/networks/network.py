"""What every network is to the training loop and the predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vqseg.networks.decoders import Decoder
from vqseg.networks.encoders import Encoder

__all__ = ["Drop", "Network", "Output", "Perturb"]

# Given (indices, codebook), the indices that the decoders see instead of the nearest ones.
Perturb = Callable[[Tensor, Tensor], Tensor]
# Given the maps (B, C, *spatial) that the decoders are about to see, finest first, those they see instead.
Drop = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Output:
    """Result of a forward pass.

    `logits` (B, L + 1, *spatial); `image` (R, 1, *spatial), the reconstruction of the first R images, or none; `maps`
    (B, C, *spatial / stride), what the decoders would have seen without any perturbation, finest first.
    Of a network with a codebook also `indices` (B, N) int64, the nearest codes before any perturbation; `tokens`
    (B, N, D); `codes` (B, N, D), the nearest codes with gradient to the codebook.
    """

    logits: Tensor
    image: Tensor | None
    maps: Sequence[Tensor] = ()
    indices: Tensor | None = None
    tokens: Tensor | None = None
    codes: Tensor | None = None


class Network(nn.Module, ABC):
    """A segmentation network. Every spatial size of an image must be a multiple of `stride`."""

    encoder: Encoder
    stride: int
    has_codebook: bool = False

    @abstractmethod
    def forward(
        self, image: Tensor, perturb: Perturb | None = None, *, drop: Drop | None = None, reconstruct: int = 0
    ) -> Output:
        """Segment `image` (B, 1, *spatial); reconstruct the first `reconstruct` images of the batch, too."""

    def compile_parts(self) -> None:
        """Let torch.compile encoder and decoders: what lies between them draws at random and is not worth it."""
        for part in self.children():
            if isinstance(part, Encoder | Decoder):
                part.compile()

    def calibrate(self) -> None:
        """Follow what has moved since the last call; called every few steps of a training."""
        return

    def code_usage(self) -> Tensor | None:
        """How often each code (K,) was chosen in training so far; none without a codebook."""
        return None

    def codebook_report(self) -> dict[str, float]:
        """Figures of the codebook for the log; {} without one."""
        return {}
