"""How sure a model is of its mask: the probability that it gives to what it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Confidence", "confidence_of"]


@dataclass(frozen=True)
class Confidence:
    """Mean probability of the predicted class over the voxels that are predicted as any of L structures, and over those
    of each, by name. It lies between 1 / (L + 1) and 1, and is none where no voxel is predicted.

    It is the share of right voxels only as far as the model's probabilities are calibrated, which most networks' are
    not: they are too sure (Guo et al., arXiv 1706.04599).
    """

    mean: float | None
    by_structure: dict[str, float | None]


def confidence_of(probability: Tensor, structures: Iterable[str]) -> Confidence:
    """Confidence of the class probabilities (B, L + 1, *spatial) of a whole study, background first; `structures` are
    the names of the L others, in their order."""
    largest = probability.amax(1)
    # As in the mask, the first of equals wins.
    unclaimed = probability[:, 0] < largest
    found = []
    for scores in probability[:, 1:].unbind(1):
        won = unclaimed & (scores == largest)
        unclaimed &= ~won
        # In float64: a sum over millions of voxels in float32 stops growing.
        found.append((float((largest * won).sum(dtype=torch.float64)), int(won.sum())))
    least = 1 / probability.shape[1]
    by_structure = {name: _mean([one], least) for name, one in zip(structures, found, strict=True)}
    return Confidence(_mean(found, least), by_structure)


def _mean(found: Sequence[tuple[float, int]], least: float) -> float | None:
    """Of sums and numbers of voxels."""
    voxels = sum(count for _, count in found)
    # Blended windows may add up to a rounding error more than 1.
    return min(max(sum(total for total, _ in found) / voxels, least), 1.0) if voxels else None
