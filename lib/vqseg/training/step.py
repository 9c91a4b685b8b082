"""THE ALGORITHM: one labelled and one unlabelled batch in, named losses out.

VQ-Seg (arXiv 2601.10124), with x_l, x_u weak views of the labelled and unlabelled batch:

    L_labelled   = L1(x_l, x_hat_l) + L_seg(y_l, y_hat_l)
    L_unlabelled = L1(x_u, x_hat_u) + L_seg(pseudo, y_hat_u under QPM) + L_seg(pseudo, y_hat_a of the strong view)
    pseudo       = argmax of the teacher, where its confidence reaches `loss.confidence`
    L            = L_labelled + lambda_u L_unlabelled + lambda_a L_align + L_codebook

The teacher does not see x_u but the patch from which it was deformed, and its probabilities are deformed with it: so it
is asked about images such as it will segment, and the student learns that a moved image has a moved mask.

A method says which streams of images the student learns from; everything else is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vqseg.config import Config
from vqseg.data.guidance import Guidance
from vqseg.data.patches import Batch
from vqseg.losses import alignment_loss, codebook_loss, reconstruction_loss, segmentation_loss
from vqseg.networks.dropout import drop_channels
from vqseg.networks.foundation import FeatureAdapter
from vqseg.networks.mirroring import segment_mirrored
from vqseg.networks.network import Drop, Network, Output, Perturb
from vqseg.networks.vqseg import VQSeg
from vqseg.training.views import (
    Geometry,
    apply_cutmix,
    apply_geometry,
    apply_intensity,
    draw_cutmix,
    draw_intensity,
)

__all__ = [
    "Consistency",
    "Method",
    "PseudoLabel",
    "Reconstruction",
    "StepInputs",
    "Stream",
    "Supervised",
    "Target",
    "Unlabelled",
    "VQSegMethod",
    "WeakView",
    "pseudo_label",
]


@dataclass(frozen=True)
class Unlabelled:
    """Patches `image` (B, 1, *spatial) as they were read, the `geometry` that makes the weak view of them, and the
    foundation model's features `guide` (B, C, *grid), or none."""

    image: Tensor
    geometry: Geometry
    guide: Tensor | None = None


@dataclass(frozen=True)
class StepInputs:
    """What a method learns from. `labelled` is a view already; `ramp` in 0..1 is the weight the unlabelled terms have
    reached, and where it is 0 there is no `unlabelled`; `generator` gives every draw of the step."""

    student: Network
    teacher: Network
    labelled: Batch
    unlabelled: Unlabelled | None
    ramp: float
    generator: torch.Generator


@dataclass(frozen=True)
class PseudoLabel:
    """`target` int64 (B, *spatial) and `valid` bool (B, *spatial), the voxels the teacher is sure of."""

    target: Tensor
    valid: Tensor


@dataclass(frozen=True)
class WeakView:
    """`image` (B, 1, *spatial), its `pseudo` label, and the foundation model's features `guide` of it, or none."""

    image: Tensor
    pseudo: PseudoLabel
    guide: Tensor | None


@dataclass(frozen=True)
class Target:
    """What a stream should be segmented as: the term's `name`, the `label` int64 (B, *spatial), the voxels that count
    (`valid` bool, none: all) and the term's `weight`."""

    name: str
    label: Tensor
    weight: float = 1.0
    valid: Tensor | None = None


@dataclass(frozen=True)
class Stream:
    """Images (B, 1, *spatial) that the student sees, and what it should make of them.

    `perturbed`: its features are perturbed before they are decoded; `reconstructed`: with a codebook, the image is
    asked back, too; `guide` (B, C, *grid): features of the foundation model, in the view of the images.
    """

    image: Tensor
    targets: Sequence[Target]
    perturbed: bool = False
    reconstructed: bool = False
    guide: Tensor | None = None


@torch.no_grad()
def pseudo_label(
    teacher: Network, unlabelled: Unlabelled, mirror_axes: Sequence[int], confidence: float
) -> PseudoLabel:
    """The teacher's answer for the patches, mirrored too and without perturbation, moved into their weak view."""
    probability = segment_mirrored(teacher, unlabelled.image, mirror_axes)
    best = apply_geometry(probability, unlabelled.geometry).max(1)
    return PseudoLabel(best.indices, best.values >= confidence)


class Method(nn.Module):
    """A training method. What it trains besides the student is part of it as a module."""

    quantized: ClassVar[bool] = False
    # Without labels all patches are alike, and come as the labelled ones do.
    uses_labels: ClassVar[bool] = True
    uses_unlabelled: ClassVar[bool] = True
    # Strong views of each unlabelled patch, which share the weight of one.
    strong_views: ClassVar[int] = 1
    # Whether a stream shows whole images, which a foundation model can be asked about.
    can_be_guided: ClassVar[bool] = True

    def __init__(self, config: Config, guidance: Guidance | None = None) -> None:
        super().__init__()
        self.config = config
        self.adapter = FeatureAdapter(config, guidance.channels) if guidance else None

    def streams(self, inputs: StepInputs) -> list[Stream]:
        """What the student learns from in this step; streams that are reconstructed come first."""
        raise NotImplementedError

    def losses(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Weighted terms by name, whose sum is minimised. One forward pass of the student holds all streams."""
        loss, student = self.config.loss, inputs.student
        streams = self.streams(inputs)
        sizes = [len(stream.image) for stream in streams]
        images = torch.cat([stream.image for stream in streams])
        perturbed = torch.repeat_interleave(torch.tensor([stream.perturbed for stream in streams]), torch.tensor(sizes))
        reconstruct = sum(
            size
            for size, stream in zip(sizes, streams, strict=True)
            if stream.reconstructed and student.has_codebook and loss.reconstruction
        )
        perturb, drop = self._perturbation(inputs, perturbed)
        output = student(images, perturb, drop=drop, reconstruct=reconstruct)
        terms: dict[str, Tensor] = {}
        for stream, logits in zip(streams, output.logits.split(sizes), strict=True):
            for target in stream.targets:
                term = segmentation_loss(logits, target.label, target.valid, kind=loss.segmentation)
                terms[target.name] = terms.get(target.name, 0) + target.weight * term
        return terms | self._network_terms(output, images) | self._alignment_term(output, streams)

    def _perturbation(self, inputs: StepInputs, rows: Tensor) -> tuple[Perturb | None, Drop | None]:
        """What happens to the features of the images `rows` (B,) bool."""
        settings, student = self.config.perturbation, inputs.student
        if not rows.any():
            return None, None
        if not isinstance(student, VQSeg) or settings.kind == "dropout":
            return None, lambda maps: drop_channels(maps, rows, settings.dropout_rate, inputs.generator)

        def perturb(indices: Tensor, codebook: Tensor) -> Tensor:
            seen = indices.clone()
            chosen = rows.to(indices.device)
            seen[chosen] = student.qpm(indices[chosen], codebook, inputs.generator)
            return seen

        return perturb, None

    def _network_terms(self, output: Output, images: Tensor) -> dict[str, Tensor]:
        """Reconstruction and codebook terms, which need no label."""
        loss, terms = self.config.loss, {}
        if output.image is not None:
            error = reconstruction_loss(output.image, images[: len(output.image)])
            terms["reconstruction"] = loss.reconstruction * error
        if output.tokens is not None and output.codes is not None:
            terms["codebook"] = loss.codebook * codebook_loss(output.tokens, output.codes, commitment=loss.commitment)
        return terms

    def _alignment_term(self, output: Output, streams: Sequence[Stream]) -> dict[str, Tensor]:
        """PFA on the undisturbed features of the streams that carry the foundation model's."""
        guided = torch.cat([torch.full((len(s.image),), s.guide is not None) for s in streams])
        if self.adapter is None or not guided.any():
            return {}
        rows = guided.to(output.logits.device)
        guide = torch.cat([stream.guide for stream in streams if stream.guide is not None])
        adapted = self.adapter([features[rows] for features in output.maps], guide.shape[2:])
        foundation, in_3d = self.config.foundation, self.config.data.spatial_dims == 3
        term = alignment_loss(adapted, guide, foundation.temperature, foundation.slice_axis if in_3d else None)
        return {"alignment": self.config.loss.alignment * term}

    def labelled_stream(self, inputs: StepInputs) -> Stream:
        """The labelled view."""
        labelled = inputs.labelled
        assert labelled.label is not None
        return Stream(labelled.image, [Target("labelled", labelled.label)], reconstructed=True, guide=labelled.guide)

    def weak_view(self, inputs: StepInputs, confidence: float | None = None) -> WeakView:
        """The weak view of the unlabelled patches, and what the teacher says of it; `confidence` other than that of the
        settings."""
        if confidence is None:
            confidence = self.config.loss.confidence
        unlabelled, settings = inputs.unlabelled, self.config
        assert unlabelled is not None
        guide = unlabelled.guide
        return WeakView(
            apply_geometry(unlabelled.image, unlabelled.geometry),
            pseudo_label(inputs.teacher, unlabelled, settings.views.flip_axes, confidence),
            guide if guide is None else apply_geometry(guide, unlabelled.geometry),
        )

    def consistency_streams(self, inputs: StepInputs, weak: WeakView) -> list[Stream]:
        """The weak view with perturbed features and the strong views, as far as the settings ask for them."""
        streams, loss = [], self.config.loss
        if loss.perturbed:
            streams.append(self.perturbed_stream(inputs, weak))
        elif weak.guide is not None or (inputs.student.has_codebook and loss.reconstruction):
            # Without a segmentation term the weak view is still reconstructed and guided, from codes as they are.
            streams.append(Stream(weak.image, [], reconstructed=True, guide=weak.guide))
        if loss.strong:
            streams += [self.strong_stream(inputs, weak) for _ in range(self.strong_views)]
        return streams

    def perturbed_stream(self, inputs: StepInputs, weak: WeakView) -> Stream:
        """The weak view with perturbed features."""
        weight = self._unlabelled_weight(inputs) * self.config.loss.perturbed
        target = Target("perturbed", weak.pseudo.target, weight, weak.pseudo.valid)
        return Stream(weak.image, [target], perturbed=True, reconstructed=True, guide=weak.guide)

    def strong_stream(self, inputs: StepInputs, weak: WeakView) -> Stream:
        """The weak view with changed intensities and CutMix, its pseudo-label mixed alike."""
        views = self.config.views
        mix = draw_cutmix(weak.image, views.cutmix, inputs.generator)
        changes = draw_intensity(len(weak.image), views, inputs.generator)
        label, valid = apply_cutmix(weak.pseudo.target, mix), apply_cutmix(weak.pseudo.valid, mix)
        weight = self._unlabelled_weight(inputs) * self.config.loss.strong / self.strong_views
        image = apply_cutmix(apply_intensity(weak.image, changes), mix)
        return Stream(image, [Target("strong", label, weight, valid)])

    def _unlabelled_weight(self, inputs: StepInputs) -> float:
        return self.config.loss.unlabelled * inputs.ramp


class Supervised(Method):
    """The labelled studies alone."""

    uses_unlabelled = False

    def streams(self, inputs: StepInputs) -> list[Stream]:
        return [self.labelled_stream(inputs)]


class Reconstruction(Method):
    """Images alone: they are asked back through the codebook, and nothing is segmented."""

    quantized = True
    uses_labels = False

    def streams(self, inputs: StepInputs) -> list[Stream]:
        return [Stream(inputs.labelled.image, [], reconstructed=True, guide=inputs.labelled.guide)]


class Consistency(Method):
    """The labelled view, the weak view with perturbed features and the strong view.

    In the first `train.supervised_share` of the steps it learns from labelled patches alone: a teacher that knows
    nothing yet teaches background, and the student never recovers from it.
    """

    def streams(self, inputs: StepInputs) -> list[Stream]:
        streams = [self.labelled_stream(inputs)]
        if inputs.unlabelled is not None:
            streams += self.consistency_streams(inputs, self.weak_view(inputs))
        return streams


class VQSegMethod(Consistency):
    """The whole method: consistency on the quantised network, perturbed by QPM, with both decoders."""

    quantized = True
