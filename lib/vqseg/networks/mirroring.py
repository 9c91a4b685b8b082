"""Class probabilities averaged over an image and its mirror images: the teacher's answer and the predictor's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vqseg.networks.network import Network

__all__ = ["Segmentation", "segment_mirrored"]


@dataclass(frozen=True)
class Segmentation:
    """`probability` float32 (B, L + 1, *spatial); `indices` (B, N), the codes of the image that is not
    mirrored, or none without a codebook."""

    probability: Tensor
    indices: Tensor | None


def segment_mirrored(network: Network, image: Tensor, axes: Sequence[int]) -> Segmentation:
    """Segment `image` (B, 1, *spatial) as it is and mirrored along each of the spatial `axes` in turn."""
    output = network(image)
    probability = output.logits.float().softmax(1)
    for axis in axes:
        probability = probability + network(image.flip(axis + 2)).logits.float().softmax(1).flip(axis + 2)
    return Segmentation(probability / (1 + len(axes)), output.indices)
