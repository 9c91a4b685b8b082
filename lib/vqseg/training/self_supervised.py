"""A codebook learnt from images alone, so that studies can be compared before anything is labelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqseg.config import Config
from vqseg.data.plan import plan
from vqseg.data.preparation import prepare_study
from vqseg.data.reading import read_grid
from vqseg.data.studies import Study, without_labels
from vqseg.devices import choose_device
from vqseg.errors import ConfigError, DataError, ImageError
from vqseg.store import ModelStore, ModelVersion
from vqseg.training.manifest import training_manifest
from vqseg.training.trainer import TrainedStep, Trainer

__all__ = ["SELF_SUPERVISED_METHOD", "Pretrained", "pretrain"]

SELF_SUPERVISED_METHOD = "reconstruction"


@dataclass(frozen=True)
class Pretrained:
    """The published `version`, and why studies were `left_out`, by id."""

    version: ModelVersion
    left_out: dict[str, str]


def pretrain(
    studies: Sequence[Study],
    folder: Path,
    config: Config,
    *,
    device: str = "auto",
    on_progress: Callable[[dict[str, Any]], None] = lambda status: None,
) -> Pretrained:
    """Train encoder and codebook to reconstruct the images, and publish them as a version in `<folder>/models`.

    The version segments nothing; its code usage tells studies apart. A study that cannot be read is left out. Raises
    `ConfigError`, `DataError` or `TrainingError`.
    """
    store = ModelStore(folder / "models")
    if (live := store.live()) is not None and live.segments:
        raise DataError(f"{store.folder}: holds a model that was trained with labels; give another folder")
    left_out: dict[str, str] = {}
    readable, grids = [], []
    for study in without_labels(sorted(studies, key=lambda study: study.id)):
        try:
            grids.append(read_grid(study.image))
            readable.append(study)
        except ImageError as error:
            left_out[study.id] = str(error)
    if not readable:
        raise DataError("no study has an image that can be read")
    planned = plan(config, grids)
    if not planned.model.has_codebook:
        raise ConfigError("without a codebook nothing is learnt from images alone; set model.quantized to true")
    images = []
    for study in readable:
        try:
            images.append(prepare_study(study, planned.data, folder / "cache"))
        except ImageError as error:
            left_out[study.id] = str(error)
    if not images:
        raise DataError("no study has an image that can be used")
    trainer = Trainer(planned, SELF_SUPERVISED_METHOD, images, [], choose_device(device))
    trainer.load_pretrained()

    def report(done: TrainedStep) -> None:
        on_progress(
            {"step": done.step, "total_steps": planned.train.steps, "message": "training", "losses": done.losses}
        )

    trainer.run(report)
    manifest = training_manifest(planned, SELF_SUPERVISED_METHOD, [], images) | {
        "segments": False,
        "step": trainer.step,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return Pretrained(store.publish(trainer.teacher, manifest), left_out)
