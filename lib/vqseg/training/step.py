"""THE ALGORITHM: one labelled and one unlabelled batch in, named losses out.

VQ-Seg (arXiv 2601.10124), with x_l, x_u weak views of the labelled and unlabelled batch:

    L_labelled   = L1(x_l, x_hat_l) + L_seg(y_l, y_hat_l)
    L_unlabelled = L1(x_u, x_hat_u) + L_seg(pseudo, y_hat_u under QPM) + L_seg(pseudo, y_hat_a of the strong view)
    pseudo       = argmax of the teacher, where its confidence reaches `loss.confidence`
    L            = L_labelled + lambda_u L_unlabelled + L_codebook

The teacher does not see x_u but the patch from which it was deformed, and its probabilities are deformed with it: so it
is asked about images such as it will segment, and the student learns that a moved image has a moved mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqseg.config import Config
from vqseg.data.patches import Batch
from vqseg.losses import codebook_loss, reconstruction_loss, segmentation_loss
from vqseg.networks.mirroring import segment_mirrored
from vqseg.networks.vqseg import Output, VQSeg
from vqseg.training.views import (
    Geometry,
    apply_cutmix,
    apply_geometry,
    apply_intensity,
    draw_cutmix,
    draw_intensity,
)

__all__ = ["METHODS", "Method", "PseudoLabel", "StepInputs", "Unlabelled", "pseudo_label"]


@dataclass(frozen=True)
class Unlabelled:
    """Patches `image` (B, 1, *spatial) as they were read, and the `geometry` that makes the weak view of them."""

    image: Tensor
    geometry: Geometry


@dataclass(frozen=True)
class StepInputs:
    """What a method learns from. `labelled` is a view already; `ramp` in 0..1 is the weight the unlabelled terms have
    reached; `generator` gives every draw of the step."""

    student: VQSeg
    teacher: VQSeg
    labelled: Batch
    unlabelled: Unlabelled | None
    ramp: float
    generator: torch.Generator


@dataclass(frozen=True)
class PseudoLabel:
    """`target` int64 (B, *spatial) and `valid` bool (B, *spatial), the voxels the teacher is sure of."""

    target: Tensor
    valid: Tensor


@torch.no_grad()
def pseudo_label(teacher: VQSeg, unlabelled: Unlabelled, mirror_axes: Sequence[int], confidence: float) -> PseudoLabel:
    """The teacher's answer for the patches, mirrored too and without perturbation, moved into their weak view."""
    probability = segment_mirrored(teacher, unlabelled.image, mirror_axes).probability
    best = apply_geometry(probability, unlabelled.geometry).max(1)
    return PseudoLabel(best.indices, best.values >= confidence)


class Method:
    """A training method: `losses` returns weighted terms by name, and their sum is minimised."""

    uses_unlabelled: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def losses(self, inputs: StepInputs) -> dict[str, Tensor]:
        raise NotImplementedError

    def network_terms(self, output: Output, image: Tensor) -> dict[str, Tensor]:
        """Reconstruction and codebook terms, which need no label."""
        loss = self.config.loss
        assert output.image is not None
        return {
            "reconstruction": loss.reconstruction * reconstruction_loss(output.image, image[: len(output.image)]),
            "codebook": loss.codebook * codebook_loss(output.tokens, output.codes, commitment=loss.commitment),
        }


class Supervised(Method):
    """The same network, trained on the labelled studies alone."""

    uses_unlabelled = False

    def losses(self, inputs: StepInputs) -> dict[str, Tensor]:
        assert inputs.labelled.label is not None
        output = inputs.student(inputs.labelled.image, reconstruct=len(inputs.labelled.image))
        kind = self.config.loss.segmentation
        return {
            "labelled": segmentation_loss(output.logits, inputs.labelled.label, kind=kind),
            **self.network_terms(output, inputs.labelled.image),
        }


class VQSegMethod(Supervised):
    """The whole method. One forward pass of the student holds all streams, so the codebook is projected once.

    In the first `train.supervised_share` of the steps it learns from labelled patches alone: a teacher that knows
    nothing yet teaches background, and the student never recovers from it.
    """

    uses_unlabelled = True

    def losses(self, inputs: StepInputs) -> dict[str, Tensor]:
        if inputs.ramp == 0:
            return super().losses(inputs)
        labelled, unlabelled, kind = inputs.labelled, inputs.unlabelled, self.config.loss.segmentation
        assert labelled.label is not None
        assert unlabelled is not None
        known, unknown = len(labelled.image), len(unlabelled.image)
        views = self.config.views
        weak = apply_geometry(unlabelled.image, unlabelled.geometry)
        pseudo = pseudo_label(inputs.teacher, unlabelled, views.flip_axes, self.config.loss.confidence)

        mix = draw_cutmix(weak, views.cutmix, inputs.generator)
        changes = draw_intensity(unknown, views, inputs.generator)
        strong = apply_cutmix(apply_intensity(weak, changes), mix)
        mixed, sure = apply_cutmix(pseudo.target, mix), apply_cutmix(pseudo.valid, mix)

        def perturb(indices: Tensor, codebook: Tensor) -> Tensor:
            clean, perturbed, rest = indices.split([known, unknown, unknown])
            return torch.cat([clean, inputs.student.qpm(perturbed, codebook, inputs.generator), rest])

        images = torch.cat([labelled.image, weak, strong])
        output = inputs.student(images, perturb, reconstruct=known + unknown)
        for_known, for_weak, for_strong = output.logits.split([known, unknown, unknown])
        weight = self.config.loss.unlabelled * inputs.ramp
        return {
            "labelled": segmentation_loss(for_known, labelled.label, kind=kind),
            "perturbed": weight * segmentation_loss(for_weak, pseudo.target, pseudo.valid, kind=kind),
            "strong": weight * segmentation_loss(for_strong, mixed, sure, kind=kind),
            **self.network_terms(output, images),
        }


METHODS: dict[str, type[Method]] = {"vqseg": VQSegMethod, "supervised": Supervised}
