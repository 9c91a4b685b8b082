"""A training from studies to a published model, in one folder:

<run>/status.json  events.jsonl  split.json  checkpoints/  models/ (a `ModelStore`)  cache/  lock
      last_training/  reports/  tensorboard/  mlflow.db  mlflow_artefacts/
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vqseg.config import Config
from vqseg.data.guidance import Guidance, guide_study, plan_guidance
from vqseg.data.plan import plan
from vqseg.data.preparation import PreparedStudy, prepare_study
from vqseg.data.reading import read_grid, read_mask
from vqseg.data.split import LockedSplit, lock_split
from vqseg.data.studies import Study, patient_of
from vqseg.devices import choose_device
from vqseg.errors import ConfigError, DataError, ImageError, LabelError, ModelError, TrainingError
from vqseg.inference.predictor import Predictor
from vqseg.networks.foundation import FoundationModel
from vqseg.report.cases import CaseFile, ExtremeCases, write_cases
from vqseg.report.facts import Facts, write_facts
from vqseg.store import ModelStore, ModelVersion
from vqseg.training.champion import decide
from vqseg.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vqseg.training.manifest import flat_settings, training_manifest
from vqseg.training.methods import METHODS, check_method
from vqseg.training.outcome import told_at_the_end
from vqseg.training.points import Points, scalars_of
from vqseg.training.run_folder import begin_in
from vqseg.training.status import StatusFile
from vqseg.training.tracking import Trackers, check_trackers
from vqseg.training.trainer import TrainedStep, Trainer
from vqseg.training.validation import ValidationScore, validate

__all__ = ["TrainingResult", "learnt_with", "train"]

# Without locked studies this many of the training studies show that the model has learnt anything at all.
_SHOWN_TRAINING_STUDIES = 3
_STATUS_SECONDS = 1.0

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingResult:
    """`live` is the version that is live afterwards; `best` the best Dice of this training, and `validated_on` says in
    words on which studies; `report` is a name in `<run>/reports`, none where none could be written."""

    live: ModelVersion | None
    best: float | None
    validated_on: str
    steps: int
    left_out: list[dict[str, str]]
    report: str | None = None


def train(
    studies: Sequence[Study],
    run: Path,
    config: Config,
    *,
    method: str = "vqseg",
    device: str = "auto",
    resume: bool = False,
    validation: Sequence[Study] | None = None,
    on_progress: Progress | None = None,
    left_out: Mapping[str, str] | None = None,
) -> TrainingResult:
    """Train on labelled and unlabelled `studies` and publish what is at least as good as the live model.

    With `resume`, an unfinished training in `run` with the same settings is continued; studies that got a label since
    then are used with it. `validation` are locked studies given by the caller; without them a share of the labelled
    patients is locked once and for all in `<run>/split.json`. A study that cannot be used is left out and named in the
    status, after those in `left_out` (id -> reason), which the caller could not get at all.
    Raises `TrainingError`, `DataError` or `ConfigError`.
    """
    check_method(method, config)
    check_trackers(config.tracking.to)
    if not config.data.labels:
        raise ConfigError("the names of the structures are not known; give them as data.labels, for example {lung: 1}")
    fields = {"step": 0, "total_steps": config.train.steps, "method": method, "message": "reading the studies"}
    with begin_in(run, **fields) as status:
        with told_at_the_end(status), Trackers(config.tracking.to, status.event) as trackers:
            training = _Run(run, config, method, device, status, trackers, on_progress)
            for study, reason in (left_out or {}).items():
                training.leave_out(study, reason)
            result = training.go(sorted(studies, key=lambda study: study.id), validation, resume)
        return replace(result, report=status.fields.get("report"))


def learnt_with(config: Config, method: str) -> dict[str, Any]:
    """As values for JSON, what must be the same for an unfinished training to be continued.

    How a model is used afterwards does not change how it is trained.
    """
    return {"method": method, **config.model_dump(mode="json", exclude={"inference", "active", "tracking"})}


class _Run:
    def __init__(
        self,
        run: Path,
        config: Config,
        method: str,
        device: str,
        status: StatusFile,
        trackers: Trackers,
        on_progress: Progress | None,
    ) -> None:
        self.run, self.requested, self.method, self.cache = run, config, method, run / "cache"
        self.device = choose_device(device)
        self.status, self.trackers, self.on_progress = status, trackers, on_progress
        self.checkpoints, self.store = run / "checkpoints", ModelStore(run / "models")
        self.left_out: list[dict[str, str]] = []
        self.best: float | None = None
        self.champion: float | None = None
        self.seconds_before = 0.0
        self.reported = 0.0
        self.name = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")

    def go(self, studies: list[Study], validation: Sequence[Study] | None, resume: bool) -> TrainingResult:
        checkpoint = self._unfinished() if resume else None
        self.status.write(step=checkpoint.step if checkpoint else 0)
        studies = self._readable(studies)
        self.config = Config.model_validate(checkpoint.state["config"]) if checkpoint else self._plan(studies)
        labelled, unlabelled = self._prepare(studies)
        self._split(labelled, validation)
        training = [p for p in labelled if p.study in self.split.training]
        pattern = self.config.data.patient_pattern
        locked = {patient_of(study.id, pattern) for study in self.split.validation}
        unlabelled = [p for p in unlabelled if patient_of(p.study.id, pattern) not in locked]
        if not training:
            raise TrainingError("no labelled study can be trained on; label at least one study first")
        self.unlabelled = len(unlabelled) if METHODS[self.method].uses_unlabelled else 0
        images = unlabelled or [replace(p, label=None, foreground=None) for p in training]
        training, images, guidance = self._guided(training, images)
        self.trainer = Trainer(self.config, self.method, training, images, self.device, guidance)
        self.manifest = training_manifest(self.config, self.method, training, images)
        self._start(checkpoint)
        self.begin = time.monotonic()
        self.trainer.run(self._after_step)
        return TrainingResult(self.store.live(), self.best, self.split.note, self.trainer.step, self.left_out)

    def _unfinished(self) -> Checkpoint | None:
        checkpoint = load_checkpoint(self.checkpoints)
        if checkpoint is None or checkpoint.state["finished"]:
            return None
        if checkpoint.state["requested"] != learnt_with(self.requested, self.method):
            self.status.event("anew", reason="the settings differ from those of the unfinished training")
            return None
        return checkpoint

    def _plan(self, studies: Sequence[Study]) -> Config:
        if not studies:
            raise DataError("no study has an image that can be read; see left_out in the status")
        grids = [read_grid(study.image) for study in studies]
        return plan(self.requested, grids, quantized=METHODS[self.method].quantized)

    def _readable(self, studies: list[Study]) -> list[Study]:
        readable = []
        for study in studies:
            try:
                read_grid(study.image)
                readable.append(study)
            except ImageError as error:
                self.leave_out(study.id, str(error))
        return readable

    def _prepare(self, studies: list[Study]) -> tuple[list[PreparedStudy], list[PreparedStudy]]:
        """Prepared studies with and without a label; a study whose label cannot be used is used without it."""
        labelled: list[PreparedStudy] = []
        unlabelled: list[PreparedStudy] = []
        for number, study in enumerate(studies, 1):
            self._report(message=f"reading study {number} of {len(studies)}")
            try:
                try:
                    prepared = prepare_study(study, self.config.data, self.cache)
                except LabelError as error:
                    self.leave_out(study.id, str(error))
                    prepared = prepare_study(replace(study, label=None), self.config.data, self.cache)
            except ImageError as error:
                self.leave_out(study.id, str(error))
                continue
            (labelled if prepared.label else unlabelled).append(prepared)
        return labelled, unlabelled

    def _guided(
        self, training: list[PreparedStudy], images: list[PreparedStudy]
    ) -> tuple[list[PreparedStudy], list[PreparedStudy], Guidance | None]:
        """The studies with the foundation model's features, where the settings ask for its guidance."""
        if not self.config.foundation.in_use:
            return training, images, None
        model = FoundationModel.load(self.config.foundation.name, self.device)
        begin, guided = time.monotonic(), []
        studies = [*training, *(images if METHODS[self.method].uses_unlabelled else [])]
        for number, prepared in enumerate(studies, 1):
            self._report(message=f"foundation model: study {number} of {len(studies)}")
            guided.append(guide_study(prepared, model, self.config, self.cache))
        self.status.event("guided", studies=len(studies), seconds=round(time.monotonic() - begin, 1))
        return guided[: len(training)], guided[len(training) :] or images, plan_guidance(self.config, model)

    def leave_out(self, study: str, reason: str) -> None:
        self.left_out.append({"id": study, "reason": reason})
        self.status.event("left_out", id=study, reason=reason)

    def _split(self, labelled: list[PreparedStudy], validation: Sequence[Study] | None) -> None:
        studies = [prepared.study for prepared in labelled]
        if validation is not None:
            note = f"{len(validation)} studies of the split file, which are not trained on"
            if not validation:
                note = "labelled studies that it trains on (the split file names none for validation)"
            pattern = self.config.data.patient_pattern
            kept = {patient_of(study.id, pattern) for study in validation}
            for study in validation:
                assert study.label is not None
                read_mask(study.label, read_grid(study.image), self.config.data.labels)
            self.split = LockedSplit(
                [s for s in studies if patient_of(s.id, pattern) not in kept], list(validation), note
            )
        else:
            data = self.config.data
            self.split = lock_split(studies, data.validation_fraction, data.patient_pattern, self.run / "split.json")
        self.validated_on = self.split.validation or self.split.training[:_SHOWN_TRAINING_STUDIES]

    def _start(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            self.trainer.restore(checkpoint)
            # A score on other studies is no score to beat.
            same = checkpoint.state["validated_on"] == [study.id for study in self.validated_on]
            self.best = checkpoint.state["best"] if same else None
            self.seconds_before = checkpoint.state["seconds"]
            # A training of an earlier version has no name yet.
            self.name = checkpoint.state.get("name", self.name)
        else:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            self.trainer.load_pretrained()
        self.champion = self._champion_score()
        per_epoch = self.trainer.steps_per_epoch
        self.status.write(
            step=self.trainer.step,
            epoch=self.trainer.step // per_epoch,
            total_epochs=-(-self.config.train.steps // per_epoch),
            best_metric=self.best,
            training=self.name,
            validated_on=self.split.note,
            left_out=self.left_out,
            labelled=len(self.trainer.labelled),
            unlabelled=len(self.trainer.unlabelled) if self.trainer.method.uses_unlabelled else 0,
            message="training",
        )
        self.status.event(
            "resume" if checkpoint else "start",
            method=self.method,
            step=self.trainer.step,
            training=self.name,
            validated_on=self.split.note,
        )
        self.points = Points(self.run, self.trainer.step)
        locked = bool(self.split.validation)
        write_facts(self.run, Facts(self.name, locked, self.split.note, self.manifest, self.unlabelled))
        self.trackers.begin(self.run, self.name, self.trainer.step, flat_settings(self.manifest))

    def _champion_score(self) -> float | None:
        """The live model's score on the studies of this training, or none when there is nothing to compare with."""
        live = self.store.live()
        if live is None or not live.segments:
            return None
        try:
            champion = Predictor.load(live.folder, str(self.device))
        except ModelError as error:
            self.status.event("champion_unusable", reason=str(error))
            return None
        if champion.labels != self.config.data.labels:
            return None
        return self._score(champion).dice

    def _score(self, predictor: Predictor) -> ValidationScore:
        """Score on the studies validated on; one that went missing or bad meanwhile is left out from now on."""
        while self.validated_on:
            self.extremes = ExtremeCases()
            try:
                return validate(predictor, self.validated_on, self.extremes.add)
            except ImageError as error:
                bad = next(s for s in self.validated_on if str(error).startswith((f"{s.image}:", f"{s.label}:")))
                self.leave_out(bad.id, str(error))
                self.validated_on = [study for study in self.validated_on if study is not bad]
                # Scores on more studies cannot be compared with those to come.
                self.best = self.champion = None
        raise TrainingError("none of the validation studies can be read any more; see left_out in the status")

    def _after_step(self, done: TrainedStep) -> None:
        train = self.config.train
        last = done.step == train.steps
        validation = self._validate(done) if last or done.step % train.validate_every == 0 else None
        if validation or done.step % self.requested.tracking.every == 0:
            point = self.points.add(done.step, done.losses, self.trainer.learning_rate)
            self.trackers.scalars(done.step, scalars_of(point, validation))
        if last or done.step % train.checkpoint_every == 0:
            self.trackers.flush()
            save_checkpoint(self.checkpoints, self._checkpoint(finished=last))
        seconds = self.seconds_before + time.monotonic() - self.begin
        self._report(
            force=last,
            step=done.step,
            epoch=done.step // self.trainer.steps_per_epoch,
            losses=done.losses,
            best_metric=self.best,
            training_seconds=round(seconds, 1),
            remaining_seconds=round(seconds / done.step * (train.steps - done.step), 1),
        )

    def _checkpoint(self, *, finished: bool) -> Checkpoint:
        return self.trainer.checkpoint(
            config=self.config.model_dump(mode="json"),
            requested=learnt_with(self.requested, self.method),
            best=self.best,
            validated_on=[study.id for study in self.validated_on],
            seconds=self.seconds_before + time.monotonic() - self.begin,
            name=self.name,
            finished=finished,
        )

    def _validate(self, done: TrainedStep) -> dict[str, Any]:
        """Score the teacher, publish it if it deserves that, and return what the event says of it."""
        teacher = Predictor(self.trainer.teacher, self.config, self.device)
        score = self._score(teacher)
        decision = decide(score.dice, self.best, self.champion, locked=bool(self.split.validation))
        published = None
        if decision.publish:
            published = self.store.publish(self.trainer.teacher, self._manifest_of(score, done.step))
        if decision.publish or self.best is None or score.dice > self.best:
            self._keep_cases(done.step)
        self.best = max(score.dice, self.best or 0)
        event = {
            "step": done.step,
            "losses": done.losses,
            "published": published and published.name,
            "reason": decision.reason,
            **self.trainer.student.codebook_report(),
            **score.as_dict(),
        }
        self.status.event("validation", **event)
        self.status.write(validation=score.as_dict(), **({"live": published.name} if published else {}))
        return event

    def _keep_cases(self, step: int) -> None:
        usage = self.trainer.student.code_usage()
        counts = None if usage is None else usage.cpu().numpy()
        # A report can do without them, and so can the training.
        with contextlib.suppress(OSError):
            write_cases(self.run, CaseFile(self.name, step, self.extremes.worst_first, counts))

    def _manifest_of(self, score: ValidationScore, step: int) -> dict[str, Any]:
        return self.manifest | {
            "training": self.name,
            "step": step,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "validation": {"validated_on": self.split.note, **score.as_dict()},
        }

    def _report(self, *, force: bool = False, **fields: Any) -> None:
        """Write the status and call back, at most once in `_STATUS_SECONDS`."""
        now = time.monotonic()
        if force or now - self.reported >= _STATUS_SECONDS:
            self.reported = now
            self.status.write(**fields)
            if self.on_progress:
                self.on_progress(self.status.fields)
