"""The terms of the loss, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["alignment_loss", "codebook_loss", "reconstruction_loss", "segmentation_loss"]

_SMOOTH = 1e-5


def segmentation_loss(logits: Tensor, target: Tensor, valid: Tensor | None = None, *, kind: str = "dice_ce") -> Tensor:
    """Cross-entropy, with `kind` "dice_ce" plus soft Dice over the foreground classes of the batch.

    With "dice_balanced_ce" every class present has the same share in the cross-entropy, however few its voxels.

    `logits` (B, L + 1, *spatial), `target` int64 (B, *spatial), `valid` bool (B, *spatial): voxels that count.
    """
    logits = logits.float()
    weight = torch.ones_like(target, dtype=logits.dtype) if valid is None else valid.to(logits.dtype)
    voxelwise = functional.cross_entropy(logits, target, reduction="none")
    if kind == "dice_balanced_ce":
        cross_entropy = _mean_over_classes(voxelwise, target, weight, logits.shape[1])
    else:
        cross_entropy = (voxelwise * weight).sum() / weight.sum().clamp(min=1)
    if kind == "ce":
        return cross_entropy
    return cross_entropy + _soft_dice_loss(logits.softmax(1), target, weight)


def reconstruction_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error."""
    return (reconstruction.float() - image).abs().mean()


def codebook_loss(tokens: Tensor, codes: Tensor, *, commitment: float) -> Tensor:
    """|sg[z] - q|^2 + commitment |z - sg[q]|^2 as means (van den Oord et al., arXiv 1711.00937, eq. 3)."""
    return functional.mse_loss(codes, tokens.detach()) + commitment * functional.mse_loss(tokens, codes.detach())


def alignment_loss(features: Tensor, guide: Tensor, temperature: float, slice_axis: int | None = None) -> Tensor:
    """Patch-wise InfoNCE, -mean_i log softmax_j(cos(f_i, g_j) / temperature)_i over the positions of one image (PFA).

    `features` and `guide` (B, C, *grid); with `slice_axis`, positions of one slice along this axis of a 3D grid.
    """
    # In float32 whatever the autocast: divided by a small temperature, a rounding error decides.
    with torch.autocast(features.device.type, enabled=False):
        first, second = (functional.normalize(_positions(a.float(), slice_axis), dim=2) for a in (features, guide))
        similarity = first @ second.transpose(1, 2)
        return -(similarity / temperature).log_softmax(2).diagonal(dim1=1, dim2=2).mean()


def _positions(array: Tensor, slice_axis: int | None) -> Tensor:
    """(B, C, *grid) as (images or slices, positions, C)."""
    if slice_axis is not None:
        array = array.movedim(slice_axis + 2, 1).flatten(0, 1)
    return array.flatten(2).transpose(1, 2)


def _mean_over_classes(voxelwise: Tensor, target: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Mean of `voxelwise` (B, *spatial) over each class of `target`, then over the classes that are present."""
    index = target.flatten()
    totals = voxelwise.new_zeros(2, classes).index_add(1, index, torch.stack([voxelwise * weight, weight]).flatten(1))
    present = totals[1] > 0
    return (totals[0] / totals[1].clamp(min=1)).sum() / present.sum().clamp(min=1)


def _soft_dice_loss(probability: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - soft Dice (Milletari et al., arXiv 1606.04797), over the batch, mean of the foreground classes."""
    classes = probability.shape[1]
    truth = functional.one_hot(target, classes).movedim(-1, 1).to(probability.dtype) * weight[:, None]
    probability = probability * weight[:, None]
    over = [0, *range(2, probability.ndim)]
    overlap = (probability * truth).sum(over)
    size = probability.sum(over) + truth.sum(over)
    return 1 - ((2 * overlap + _SMOOTH) / (size + _SMOOTH))[1:].mean()
