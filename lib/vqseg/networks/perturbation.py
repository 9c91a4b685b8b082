"""QPM, the quantised perturbation module: codes are swapped for near codes at the same position.

VQ-Seg (arXiv 2601.10124), section on QPM: the code i of every token is resampled independently from

    pi(i | i) = 1 - eps,    pi(j | i) = eps exp(-d(c_i, c_j)) / Z_i  for j != i,
    Z_i = sum_{k != i} exp(-d(c_i, c_k)).

With the squared distance at a fixed scale this kernel is uniform while codes are small and picks the single nearest
code once they have grown. Here d = |c_i - c_j|^2 / temperature, and the temperature is fitted so that the effective
number of replacement codes, the perplexity exp(H) of pi(. | i) given a replacement, is a setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "QPM",
    "Strength",
    "draw_replacements",
    "effective_codes",
    "fit_temperature",
    "kernel_logits",
    "kl_from_uniform",
]

# Below this rate of acceptance further rounds of proposals cost more than computing the whole kernel.
_LEAST_ACCEPTANCE = 0.01
_WEIGHTS_AT_A_TIME = 2**24
_CALIBRATION_CODES = 256


@dataclass(frozen=True)
class Strength:
    """How strongly QPM perturbs: the effective number of codes that replace one, and KL(P || Q) in nats."""

    replacement_codes: float
    kl_from_uniform: float


class QPM(nn.Module):
    """Keeps the kernel's temperature fitted to the codebook; the draw itself is `draw_replacements`.

    Args: `rate` eps in 0..1; `replacement_codes` the effective number of codes that replace one code.
    """

    temperature: Tensor

    def __init__(self, rate: float, replacement_codes: float) -> None:
        super().__init__()
        self.rate = rate
        self.replacement_codes = replacement_codes
        # In units of the codebook's mean squared distance: a codebook that grows takes its temperature along.
        self.register_buffer("temperature", torch.tensor(math.nan))

    @torch.no_grad()
    def calibrate(self, codebook: Tensor) -> None:
        """Fit the temperature to `codebook` (K, D)."""
        fitted = fit_temperature(codebook, self.replacement_codes)
        self.temperature.fill_(fitted / mean_squared_distance(codebook))

    def temperature_for(self, codebook: Tensor) -> float:
        """Temperature of the kernel on `codebook`, as it is now."""
        if self.temperature.isnan():
            self.calibrate(codebook)
        return float(self.temperature) * mean_squared_distance(codebook)

    def strength(self, codebook: Tensor) -> Strength:
        """Strength on `codebook` (K, D) with the temperature in use, which was fitted some steps ago."""
        temperature, codebook = self.temperature_for(codebook), codebook.detach().float()
        return Strength(effective_codes(codebook, temperature), kl_from_uniform(codebook, self.rate, temperature))

    def forward(self, indices: Tensor, codebook: Tensor, generator: torch.Generator) -> Tensor:
        """Perturbed copy of `indices`, of any shape."""
        return draw_replacements(indices, codebook, self.rate, self.temperature_for(codebook), generator)


@torch.no_grad()
def draw_replacements(
    indices: Tensor, codebook: Tensor, rate: float, temperature: float, generator: torch.Generator
) -> Tensor:
    """Draw a replacement for each of `indices` (any shape, int64) with probability `rate`, exactly from the kernel.

    A wide kernel is sampled by rejection (propose a code uniformly, accept it with exp(-d)); what is left over, and a
    narrow kernel, by inverting the distribution function of each distinct code. `generator` lives on the CPU.
    """
    codebook = codebook.detach().float()
    flat = indices.flatten().clone()
    fired = (torch.rand(flat.shape, generator=generator) < rate).nonzero().squeeze(1).to(flat.device)
    while len(fired):
        proposed, accepted = _propose(flat[fired], codebook, temperature, generator)
        share = accepted.float().mean().item()
        flat[fired[accepted]] = proposed[accepted]
        fired = fired[~accepted]
        if share < _LEAST_ACCEPTANCE and len(fired):
            flat[fired] = _invert(flat[fired], codebook, temperature, generator)
            break
    return flat.view(indices.shape)


def kernel_logits(codes: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """Log pi(. | i) given a replacement, (M, K), for `codes` (M,), up to a constant of each row; -inf at i itself.

    -|c_i - c_j|^2 / t = (2 c_i . c_j - |c_j|^2) / t + constant. The offset is one more dimension of the product, so
    that the (M, K) matrix, by far the largest here, is passed over once.
    """
    chosen = nn.functional.pad(codebook[codes] * (2 / temperature), (0, 1), value=-1 / temperature)
    extended = torch.cat([codebook, codebook.square().sum(1, keepdim=True)], 1)
    # In bfloat16 the two terms nearly cancel: a code's distribution was up to 0.36 (total variation) from the kernel.
    with torch.autocast(codebook.device.type, enabled=False):
        return (chosen @ extended.T).scatter_(1, codes[:, None], -math.inf)


@torch.no_grad()
def effective_codes(codebook: Tensor, temperature: float) -> float:
    """Effective number of replacement codes exp(mean_i H(pi(. | i))), over an even sample of the codes i."""
    return math.exp(_mean_entropy(_sampled_distances(codebook), temperature))


@torch.no_grad()
def kl_from_uniform(codebook: Tensor, rate: float, temperature: float) -> float:
    """KL(P || Q) = -(1 / K) sum_j ln(K Q_j) with P = 1 / K and Q_j = sum_i pi(j | i) / K (arXiv 2601.10124, QPM)."""
    size = len(codebook)
    received = torch.zeros(size, dtype=torch.float64, device=codebook.device)
    for codes in torch.arange(size, device=codebook.device).split(max(1, _WEIGHTS_AT_A_TIME // size)):
        received += kernel_logits(codes, codebook, temperature).softmax(1).sum(0)
    # A code that nothing else is replaced by is not quite unreachable; its weight only fell below the smallest number.
    return -((1 - rate) + rate * received).clamp(min=1e-300).log().mean().item()


@torch.no_grad()
def fit_temperature(codebook: Tensor, replacement_codes: float) -> float:
    """Temperature at which `effective_codes` is `replacement_codes`, by bisection; infinite for K - 1 codes or more.

    Rescaling the codebook by s multiplies the temperature by s^2 and leaves the kernel as it is.
    """
    if replacement_codes >= len(codebook) - 1:
        return math.inf
    distances = _sampled_distances(codebook)
    scale = mean_squared_distance(codebook)
    low, high = math.log(scale) - 20, math.log(scale) + 20
    target = math.log(replacement_codes)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _mean_entropy(distances, math.exp(middle)) > target else (middle, high)
    return math.exp((low + high) / 2)


def mean_squared_distance(codebook: Tensor) -> float:
    """Mean of |c_i - c_j|^2 over all pairs of codes; 1 where all codes are equal."""
    return 2 * codebook.detach().float().var(0, correction=0).sum().item() or 1.0


def _sampled_distances(codebook: Tensor) -> Tensor:
    """Squared distances up to a constant of each row, (n, K), of an even sample of codes."""
    codebook = codebook.detach().float()
    count = min(len(codebook), _CALIBRATION_CODES)
    sample = torch.arange(count, device=codebook.device) * len(codebook) // count
    return -kernel_logits(sample, codebook, 1.0)


def _mean_entropy(distances: Tensor, temperature: float) -> float:
    log_p = (-distances / temperature).log_softmax(1)
    return -(log_p.exp() * log_p.clamp(min=-1e9)).sum(1).mean().item()


def _uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64).to(device)


def _propose(codes: Tensor, codebook: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One uniform proposal j != i for each of `codes` and whether it is accepted."""
    proposed = torch.randint(len(codebook) - 1, codes.shape, generator=generator).to(codes.device)
    proposed += proposed >= codes
    distance = (codebook[codes] - codebook[proposed]).square().sum(1)
    accepted = _uniform(len(codes), generator, codes.device) < (-distance / temperature).exp()
    return proposed, accepted


def _invert(codes: Tensor, codebook: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A replacement for each of `codes` (T,), by inverse transform sampling grouped by distinct code."""
    uniform = _uniform(len(codes), generator, codes.device)
    distinct, order = codes.unique(return_inverse=True)
    drawn = torch.empty_like(codes)
    rows = max(1, _WEIGHTS_AT_A_TIME // len(codebook))
    for start in range(0, len(distinct), rows):
        logits = kernel_logits(distinct[start : start + rows], codebook, temperature)
        weights = logits.sub_(logits.amax(1, keepdim=True)).exp_()
        chosen = ((order >= start) & (order < start + rows)).nonzero().squeeze(1)
        drawn[chosen] = _inverse_transform(weights, order[chosen] - start, uniform[chosen])
    return drawn


def _inverse_transform(weights: Tensor, rows: Tensor, uniform: Tensor) -> Tensor:
    """Column drawn from `weights[row]` for each of `rows` (T,), from `uniform` (T,) in [0, 1).

    In two levels, block then column, each of about the square root of the columns: only the sums of blocks are
    accumulated over the whole row, in float64, and for each of `rows` no more than both levels together.
    """
    columns = weights.shape[1]
    width = 1 << (columns.bit_length() // 2)
    blocks = -(-columns // width)
    if columns % width:
        weights = nn.functional.pad(weights, (0, blocks * width - columns))
    padded = weights.view(-1, blocks, width)
    block_cdf = padded.sum(2, dtype=torch.float64).cumsum(1)[rows]
    target = uniform[:, None] * block_cdf[:, -1:]
    block = torch.searchsorted(block_cdf, target, right=True).clamp_(max=blocks - 1)
    before = block_cdf.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    column_cdf = padded[rows, block.squeeze(1)].double().cumsum(1)
    within = torch.searchsorted(
        column_cdf, torch.minimum(target - before, column_cdf[:, -1:] * (1 - 1e-12)), right=True
    )
    return (block * width + within).squeeze(1).clamp_(max=columns - 1)
