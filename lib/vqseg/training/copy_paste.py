"""Bidirectional copy-paste, BCP (Bai et al., arXiv 2305.00673): a box of a labelled image goes into an unlabelled one
and the other way round, so that both are seen in one distribution."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vqseg.data.patches import Batch
from vqseg.training.step import Method, PseudoLabel, StepInputs, Stream, Target

__all__ = ["BidirectionalCopyPaste", "VQSegWithCopyPaste", "draw_box", "largest_components"]


def draw_box(spatial: torch.Size | tuple[int, ...], side: float, generator: torch.Generator) -> Tensor:
    """Box (*spatial) bool at a random place, its sides the share `side` of the patch (BCP, eq. 1)."""
    box = torch.zeros(*spatial, dtype=torch.bool)
    place = []
    for size in spatial:
        length = max(1, round(size * side))
        start = int(torch.randint(size - length + 1, (), generator=generator))
        place.append(slice(start, start + length))
    box[tuple(place)] = True
    return box


def largest_components(label: Tensor, classes: int) -> Tensor:
    """`label` (B, *spatial) with the largest connected component of each class 1..classes - 1 of each image."""
    array = label.cpu().numpy()
    kept = np.zeros_like(array)
    for image, result in zip(array, kept, strict=True):
        for value in range(1, classes):
            components, count = ndimage.label(image == value)
            if count:
                sizes = np.bincount(components.ravel())
                sizes[0] = 0
                result[components == sizes.argmax()] = value
    return torch.from_numpy(kept).to(label.device)


class _CopyPaste(Method):
    def copy_paste_streams(self, inputs: StepInputs, other: Batch, pseudo: PseudoLabel | None) -> list[Stream]:
        """The labelled images with a box of `other`, and `other` with a box of the labelled ones.

        `pseudo` says where the labels of `other` are pseudo-labels and count less; without it they are true ones.
        """
        labelled, loss = inputs.labelled, self.config.loss
        assert labelled.label is not None
        assert other.label is not None
        box = draw_box(labelled.image.shape[2:], self.config.views.copy_paste, inputs.generator).to(other.image.device)
        count = max(len(labelled.image), len(other.image))
        first, second = _repeated(labelled, count), _repeated(other, count)
        assert first.label is not None
        assert second.label is not None
        weight = 1.0 if pseudo is None else loss.copy_paste * self._unlabelled_weight(inputs)
        sure = torch.ones_like(second.label, dtype=torch.bool)
        if pseudo is not None:
            sure = _repeat(pseudo.valid, count)
        streams = []
        for name, from_second in (("inward", box), ("outward", ~box)):
            label = torch.where(from_second, second.label, first.label)
            targets = [
                Target(f"labelled_{name}", label, 0.5, (~from_second).expand_as(label)),
                Target(f"pasted_{name}", label, 0.5 * weight, from_second & sure),
            ]
            streams.append(Stream(torch.where(from_second, second.image, first.image), targets))
        return streams

    def refined(self, pseudo: PseudoLabel) -> PseudoLabel:
        """Without the small components of the teacher's answer, where the settings ask for it."""
        if not self.config.loss.largest_component:
            return pseudo
        return PseudoLabel(largest_components(pseudo.target, len(self.config.data.labels) + 1), pseudo.valid)


class BidirectionalCopyPaste(_CopyPaste):
    """BCP: copy-paste between labelled images first, then between labelled and unlabelled ones with a teacher.

    As published it takes every pseudo-label, sure or not. Otherwise than in the authors' release both mixed images are
    made of the same pair, in the first phase too, and self-training starts from the last step, not from the one that
    validated best.
    """

    can_be_guided = False

    def streams(self, inputs: StepInputs) -> list[Stream]:
        if inputs.unlabelled is None:
            shifted = [part.roll(1, 0) for part in (inputs.labelled.image, _label_of(inputs.labelled))]
            return self.copy_paste_streams(inputs, Batch(*shifted), None)
        weak = self.weak_view(inputs, confidence=0)
        pseudo = self.refined(weak.pseudo)
        return self.copy_paste_streams(inputs, Batch(weak.image, pseudo.target), pseudo)


class VQSegWithCopyPaste(_CopyPaste):
    """VQ-Seg, and bidirectional copy-paste beside its views."""

    quantized = True

    def streams(self, inputs: StepInputs) -> list[Stream]:
        streams = [self.labelled_stream(inputs)]
        if inputs.unlabelled is not None:
            weak = self.weak_view(inputs)
            pseudo = self.refined(weak.pseudo)
            streams += self.consistency_streams(inputs, weak)
            streams += self.copy_paste_streams(inputs, Batch(weak.image, pseudo.target), pseudo)
        return streams


def _label_of(batch: Batch) -> Tensor:
    assert batch.label is not None
    return batch.label


def _repeat(array: Tensor, count: int) -> Tensor:
    return array[torch.arange(count, device=array.device) % len(array)]


def _repeated(batch: Batch, count: int) -> Batch:
    return Batch(_repeat(batch.image, count), _repeat(_label_of(batch), count))
