"""THE LOOP: what the optimiser is given, in which precision, and what is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_config, write_studies

from vqseg.data.plan import plan
from vqseg.data.preparation import prepare_study
from vqseg.data.reading import read_grid
from vqseg.data.studies import Study
from vqseg.networks.decoders import Decoder
from vqseg.networks.encoders import Encoder
from vqseg.training.trainer import TrainedStep, Trainer


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return write_studies(tmp_path_factory.mktemp("studies"), 3, 1)


def trainer_of(studies: list[Study], cache: Path, **overrides: Any) -> Trainer:
    settings = {"train.steps": 3, "train.supervised_share": 0.4, "train.warmup_steps": 0, "train.weight_decay": 0}
    config = plan(tiny_config(settings | overrides), [read_grid(study.image) for study in studies])
    prepared = [prepare_study(study, config.data, cache) for study in studies]
    labelled, unlabelled = ([one for one in prepared if bool(one.label) is has_label] for has_label in (True, False))
    return Trainer(config, "vqseg", labelled, unlabelled, torch.device("cpu"))


def run(trainer: Trainer) -> tuple[list[TrainedStep], float]:
    """The steps, and how far the student's weights have moved in all."""
    before = torch.cat([weight.detach().flatten().clone() for weight in trainer.student.parameters()])
    steps: list[TrainedStep] = []
    trainer.run(steps.append)
    after = torch.cat([weight.detach().flatten() for weight in trainer.student.parameters()])
    return steps, float((after - before).norm())


def test_gradients_are_clipped_before_the_optimiser_sees_them(studies: list[Study], tmp_path: Path) -> None:
    """AdamW divides by the gradient's own size, plus 1e-8: gradients far below that move next to nothing."""
    _, free = run(trainer_of(studies, tmp_path))
    _, clipped = run(trainer_of(studies, tmp_path, **{"train.clip_gradient": 1e-13}))
    assert 0 < clipped < free / 100


def test_mixed_precision_trains_every_term_and_keeps_weights_and_tokens_in_float32(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(studies, tmp_path, **{"train.mixed_precision": True})
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    encode, student = trainer.student.encode, trainer.student
    decoded: list[torch.dtype] = []
    student.segmentation.register_forward_hook(lambda module, inputs, output: decoded.append(output.dtype))

    def noted(image: torch.Tensor) -> Any:
        encoded = encode(image)
        seen.append((encoded.tokens.dtype, encoded.nearest.codes.dtype))
        return encoded

    monkeypatch.setattr(student, "encode", noted)
    steps, moved = run(trainer)
    assert set(decoded) == {torch.bfloat16}
    assert set(seen) == {(torch.float32, torch.float32)}
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert {"labelled", "perturbed", "strong", "reconstruction", "codebook"} <= set(steps[-1].losses)
    assert moved > 0


@pytest.mark.parametrize("fast", [True, False])
def test_the_device_chooses_the_precision_unless_the_settings_do(
    fast: bool, studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqseg.training.trainer.has_fast_bfloat16", lambda device: fast)
    assert trainer_of(studies, tmp_path, **{"train.mixed_precision": None}).autocast is fast
    assert trainer_of(studies, tmp_path, **{"train.mixed_precision": not fast}).autocast is not fast


def test_what_may_be_compiled_is(studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder and decoders of student and teacher; codes are drawn at random between them."""
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *args, **options: compiled.append(module))
    trainer_of(studies, tmp_path)
    assert compiled == []
    trainer = trainer_of(studies, tmp_path, **{"train.compile": True})
    parts = [part for network in (trainer.student, trainer.teacher) for part in network.children()]
    assert compiled == [part for part in parts if isinstance(part, Encoder | Decoder)]
    assert len(compiled) == 6
