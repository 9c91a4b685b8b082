"""What a training writes down about its codebook."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from builders import TINY_2D, tiny_config, write_studies

from vqseg.training.run import train


def validations(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == "validation"]


@pytest.mark.parametrize(
    ("overrides", "replacement_codes"),
    [({}, 4.0), (TINY_2D, 12.0), ({"train.learning_rate": 0.01, "train.warmup_steps": 5}, 12.0)],
    ids=["3D", "2D", "fast"],
)
def test_every_validation_tells_how_strong_the_perturbation_is(
    overrides: dict[str, Any], replacement_codes: float, tmp_path: Path
) -> None:
    """It is what was asked for, within 20 %, between two calibrations too."""
    settings = {"train.steps": 45, "train.validate_every": 9, "perturbation.replacement_codes": replacement_codes}
    config = tiny_config(overrides | settings)
    train(write_studies(tmp_path / "studies", 3, 2), tmp_path / "run", config, device="cpu")
    events = validations(tmp_path / "run")
    assert [event["step"] for event in events] == [9, 18, 27, 36, 45]
    for event in events:
        assert event["replacement_codes"] == pytest.approx(replacement_codes, rel=0.2), event["step"]
        assert 0 < event["kl_from_uniform"] < math.inf
        assert 1 <= event["codes_in_use"] <= 32


@pytest.mark.parametrize("method", ["supervised", "cutmix"])
def test_without_a_codebook_nothing_is_said_of_it(method: str, tmp_path: Path) -> None:
    train(write_studies(tmp_path / "studies", 3, 2), tmp_path / "run", tiny_config(), method=method, device="cpu")
    events = validations(tmp_path / "run")
    assert len(events) == 2
    for event in events:
        assert not {"replacement_codes", "kl_from_uniform", "codes_in_use"} & set(event)
