"""Class probabilities averaged over an image and its mirror images: the teacher's answer and the predictor's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vqseg.networks.network import Network

__all__ = ["average_with_mirrored", "segment_mirrored"]


def segment_mirrored(network: Network, image: Tensor, axes: Sequence[int]) -> Tensor:
    """Class probabilities (B, L + 1, *spatial), float32: the mean over `image` (B, 1, *spatial) as it is and mirrored
    along each of the spatial `axes` in turn."""
    return average_with_mirrored(network(image).logits.float().softmax(1), network, image, axes)


def average_with_mirrored(probability: Tensor, network: Network, image: Tensor, axes: Sequence[int]) -> Tensor:
    """The same where the `probability` of the image as it is, is known already."""
    for axis in axes:
        probability = probability + network(image.flip(axis + 2)).logits.float().softmax(1).flip(axis + 2)
    return probability / (1 + len(axes))
