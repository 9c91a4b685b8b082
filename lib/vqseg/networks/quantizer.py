"""Vector quantiser with a frozen Gaussian table and one learnt linear map: SimVQ (Zhu et al., arXiv 2411.02038).

Moving one map instead of single codes moves all codes at once, which keeps nearly all of a large codebook in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Quantized", "SimVQ", "nearest_codes", "perplexity", "straight_through"]

# Bound on the token-code scores held at a time. On a processor they stay in its cache (1 MiB): three times as fast as
# with 16 MiB. On a GPU fewer and larger products are faster.
_SCORES_AT_A_TIME = {"cpu": 2**18}
_SCORES_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Quantized:
    """`indices` int64 (B, N); `codes` float32 (B, N, D), with gradient to the codebook; `codebook` (K, D)."""

    indices: Tensor
    codes: Tensor
    codebook: Tensor


class SimVQ(nn.Module):
    """Nearest code of each token in the codebook `map(table)`.

    Args: `size` codes K of `dim` dimensions D. `usage` (K,) int64 counts the codes that training passes chose.
    """

    table: Tensor
    usage: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(size, dim) * dim**-0.5)
        self.register_buffer("usage", torch.zeros(size, dtype=torch.int64))
        self.map = nn.Linear(dim, dim, bias=False)

    def codebook(self) -> Tensor:
        """The codes (K, D), in float32 whatever the autocast."""
        with torch.autocast(self.table.device.type, enabled=False):
            return self.map(self.table)

    def forward(self, tokens: Tensor) -> Quantized:
        """Quantise `tokens` (B, N, D). The codebook is projected once and every token-code score computed once."""
        codebook = self.codebook()
        with torch.no_grad():
            indices = nearest_codes(tokens.detach().flatten(0, 1), codebook).view(tokens.shape[:2])
            if self.training:
                self.usage += torch.bincount(indices.flatten(), minlength=len(self.usage))
        # `embedding` and not indexing: its backward pass is deterministic on the CPU.
        return Quantized(indices, functional.embedding(indices, codebook), codebook)


def straight_through(tokens: Tensor, codes: Tensor) -> Tensor:
    """`codes` in the forward pass, the identity to `tokens` in the backward pass (Bengio et al., arXiv 1308.3432)."""
    return tokens + (codes - tokens).detach()


def perplexity(counts: Tensor) -> float:
    """How many codes would be as many as these, were all used alike: exp of the entropy of `counts` (K,) >= 0.

    Between 1 and the number of codes used; 0 where none is.
    """
    if not counts.any():
        return 0.0
    counts = counts.double()
    return float(torch.special.entr(counts / counts.sum()).sum().exp())


@torch.no_grad()
def nearest_codes(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Index (T,) of the code with the smallest Euclidean distance to each of `tokens` (T, D).

    argmin |z - e|^2 = argmax z.e - |e|^2 / 2, in float32 and in chunks of tokens, so that memory does not grow with T.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        # The offset is one more dimension of the product: adding it afterwards would cost another pass over the scores.
        extended = torch.cat([codebook, codebook.square().sum(1, keepdim=True) / -2], 1).float()
        tokens = functional.pad(tokens.float(), (0, 1), value=1.0)
        rows = max(1, _SCORES_AT_A_TIME.get(tokens.device.type, _SCORES_ELSEWHERE) // len(codebook))
        # One piece of memory for all chunks: fresh pages for each of them take as long as the product itself.
        scores = tokens.new_empty(min(rows, len(tokens)), len(codebook))
        parts = [_argmax(torch.mm(chunk, extended.T, out=scores[: len(chunk)])) for chunk in tokens.split(rows)]
    return torch.cat(parts)


def _argmax(scores: Tensor) -> Tensor:
    """The first largest column of each row (T, K). On a processor NumPy is ten times as fast as torch 2.13."""
    return torch.from_numpy(scores.numpy().argmax(1)) if scores.device.type == "cpu" else scores.argmax(1)
