"""THE LOOP: `Trainer.run` fits one screen; what a step learns stands in `step.py`."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqseg.config import Config
from vqseg.data.guidance import Guidance
from vqseg.data.patches import Batch, patch_loader
from vqseg.data.preparation import PreparedStudy
from vqseg.devices import has_fast_bfloat16
from vqseg.errors import TrainingError
from vqseg.networks.build import build_network
from vqseg.networks.foundation import load_backbone_weights
from vqseg.randomness import seed_for, torch_generator
from vqseg.training.checkpoint import Checkpoint
from vqseg.training.methods import METHODS, SELF_SUPERVISED
from vqseg.training.step import StepInputs, Unlabelled
from vqseg.training.teacher import make_teacher, teacher_decay, update_teacher
from vqseg.training.views import Geometry, apply_geometry, apply_intensity, draw_geometry, draw_intensity

__all__ = ["TrainedStep", "Trainer"]


@dataclass(frozen=True)
class TrainedStep:
    """`step` steps are done; weighted `losses` by name of the last one; its `seconds`."""

    step: int
    losses: dict[str, float]
    seconds: float


class Trainer:
    """Student, teacher, optimiser and batches of one training.

    Args: `config` planned; `labelled` and `unlabelled` prepared studies (for a method that uses no labels, all are
    among the former); `method` a name of `METHODS` or `SELF_SUPERVISED`; with `guidance` the studies have the
    foundation model's features.
    """

    def __init__(
        self,
        config: Config,
        method: str,
        labelled: list[PreparedStudy],
        unlabelled: list[PreparedStudy],
        device: torch.device,
        guidance: Guidance | None = None,
    ) -> None:
        self.config, self.device, self.step = config, device, 0
        self.labelled, self.unlabelled, self.guidance = labelled, unlabelled, guidance
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.train.seed, "weights"))
            self.student = build_network(config).to(device)
            self.method = (METHODS | SELF_SUPERVISED)[method](config, guidance).to(device)
        self.teacher = make_teacher(self.student)
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay, fused=True
        )
        train = config.train
        self.autocast = has_fast_bfloat16(device) if train.mixed_precision is None else train.mixed_precision
        if train.compile:
            for part in (self.student, self.teacher):
                part.compile_parts()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every unlabelled study (or, with none, every labelled one) is drawn once."""
        if self._unlabelled_in_use:
            return math.ceil(len(self.unlabelled) / self.config.train.unlabelled_batch)
        return math.ceil(len(self.labelled) / self.config.train.labelled_batch)

    @property
    def learning_rate(self) -> float:
        """That of the last step; a pretrained encoder's is `train.pretrained_rate` of it."""
        return float(self.optimizer.param_groups[0]["lr"])

    def run(self, after_step: Callable[[TrainedStep], None]) -> None:
        """Train to the last step; `after_step` logs, saves and validates, and its errors stop the training."""
        for labelled, unlabelled in self._batches():
            begin = time.perf_counter()
            self._set_learning_rate()
            losses = self._losses(labelled, unlabelled)
            total = torch.stack(list(losses.values())).sum()
            self._need_finite(total, "loss", losses)
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(self._parameters(), self.config.train.clip_gradient)
            self._need_finite(norm, "gradient", losses)
            self.optimizer.step()
            self.step += 1
            update_teacher(self.teacher, self.student, teacher_decay(self.step, self.config.train.teacher_decay))
            after_step(TrainedStep(self.step, _as_floats(losses), time.perf_counter() - begin))

    def load_pretrained(self) -> None:
        """Start the encoder from pretrained weights, where the settings name them. Raises `ConfigError`."""
        if self.config.model.pretrained:
            load_backbone_weights(self.student.encoder, self.config.model.pretrained)
            self.teacher.load_state_dict(self.student.state_dict())

    def checkpoint(self, **state: Any) -> Checkpoint:
        """Everything from which the training continues as if it had never stopped."""
        state = {"optimizer": self.optimizer.state_dict(), "method": self.method.state_dict(), **state}
        return Checkpoint(self.step, self.student.state_dict(), self.teacher.state_dict(), state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.step = checkpoint.step
        self.student.load_state_dict(checkpoint.student)
        self.teacher.load_state_dict(checkpoint.teacher)
        self.method.load_state_dict(checkpoint.state["method"])
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [*self.student.parameters(), *self.method.parameters()]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """A pretrained encoder learns more slowly than what begins at random (arXiv 2601.10124: a fortieth)."""
        if not self.config.model.pretrained:
            return [{"params": self._parameters(), "relative_rate": 1.0}]
        slow = list(self.student.encoder.parameters())
        known = {id(parameter) for parameter in slow}
        rest = [parameter for parameter in self._parameters() if id(parameter) not in known]
        return [
            {"params": rest, "relative_rate": 1.0},
            {"params": slow, "relative_rate": self.config.train.pretrained_rate},
        ]

    @property
    def _unlabelled_in_use(self) -> bool:
        return self.method.uses_unlabelled and bool(self.unlabelled)

    def _batches(self) -> Iterator[tuple[Batch, Batch | None]]:
        train, data = self.config.train, self.config.data
        steps = range(self.step, train.steps)
        labelled = patch_loader(
            self.labelled,
            data,
            train.labelled_batch,
            steps,
            train.seed,
            self.guidance,
            labelled=self.method.uses_labels,
        )
        if not self._unlabelled_in_use:
            yield from ((batch, None) for batch in labelled)
            return
        # Without weight in the loss they need not be read.
        first = max(self.step, self._supervised_steps)
        weighted = range(first, train.steps)
        unlabelled = patch_loader(
            self.unlabelled, data, train.unlabelled_batch, weighted, train.seed, self.guidance, labelled=False
        )
        yield from zip(labelled, itertools.chain(itertools.repeat(None, first - self.step), unlabelled), strict=True)

    def _losses(self, labelled: Batch, unlabelled: Batch | None) -> dict[str, Tensor]:
        seed = (self.config.train.seed, "step", self.step)
        if self.step % _CALIBRATE_EVERY == 0:
            self.student.calibrate()
        self.student.train()
        inputs = StepInputs(
            student=self.student,
            teacher=self.teacher,
            labelled=self._labelled_view(labelled.to(self.device), torch_generator(*seed, "labelled")),
            unlabelled=None
            if unlabelled is None
            else self._unlabelled_patches(unlabelled.to(self.device), torch_generator(*seed, "unlabelled")),
            ramp=self._ramp(),
            generator=torch_generator(*seed, "method"),
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.method.losses(inputs)

    @property
    def _supervised_steps(self) -> int:
        return round(self.config.train.supervised_share * self.config.train.steps)

    def _ramp(self) -> float:
        """Weight of the unlabelled terms: 0 in the supervised share of the steps, then rising linearly to 1."""
        rampup = round(self.config.train.rampup_share * self.config.train.steps)
        return min(1.0, max(0, self.step + 1 - self._supervised_steps) / max(1, rampup))

    def _need_finite(self, value: Tensor, name: str, losses: dict[str, Tensor]) -> None:
        if not value.isfinite():
            raise TrainingError(
                f"the {name} is not finite at step {self.step + 1}: {_as_floats(losses)}; the last "
                "checkpoint is intact; train with a lower learning rate or another seed"
            )

    def _labelled_view(self, batch: Batch, generator: torch.Generator) -> Batch:
        geometry = self._draw_geometry(len(batch.image), generator)
        intensity = draw_intensity(len(batch.image), self.config.views, generator)
        classes, label = len(self.config.data.labels) + 1, batch.label
        return Batch(
            apply_intensity(apply_geometry(batch.image, geometry), intensity),
            label if label is None else apply_geometry(label, geometry, classes=classes),
            batch.guide if batch.guide is None else apply_geometry(batch.guide, geometry),
        )

    def _unlabelled_patches(self, batch: Batch, generator: torch.Generator) -> Unlabelled:
        return Unlabelled(batch.image, self._draw_geometry(len(batch.image), generator), batch.guide)

    def _draw_geometry(self, count: int, generator: torch.Generator) -> Geometry:
        return draw_geometry(count, self._extent(), self.config.views, generator)

    def _extent(self) -> list[float]:
        """Millimetres of a patch on its own axes; voxels where the images keep their own spacing."""
        data = self.config.data
        assert data.patch_size is not None
        assert not isinstance(data.spacing, str)
        spacing = [data.spacing[axis] for axis in range(3) if axis != data.slice_axis]
        return [size * (step or 1.0) for size, step in zip(data.patch_size, spacing, strict=True)]

    def _set_learning_rate(self) -> None:
        """Linear warm-up, then polynomial decay to zero."""
        train = self.config.train
        warmup = min(1.0, (self.step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
        rate = train.learning_rate * warmup * (1 - self.step / train.steps) ** train.poly_power
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]


# The codebook moves slowly; its scale is followed closely enough at this many steps.
_CALIBRATE_EVERY = 25


def _as_floats(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(float(value.detach()), 5) for name, value in losses.items()}
