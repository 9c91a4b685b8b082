"""A codebook from images alone: what is learnt, what is published, and what it can be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_config, write_studies
from click.testing import CliRunner

from vqseg.cli import main
from vqseg.data.reading import read_image
from vqseg.errors import ConfigError, DataError, ModelError
from vqseg.inference.predictor import Predictor
from vqseg.store import ModelStore
from vqseg.training.run import train
from vqseg.training.self_supervised import pretrain


def test_the_images_come_back_better_and_better(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    config = tiny_config({"train.steps": 120})
    pretrain(write_studies(tmp_path, 4, 0), tmp_path / "run", config, device="cpu", on_progress=seen.append)
    errors = [status["losses"]["reconstruction"] for status in seen]
    assert set(seen[-1]["losses"]) == {"reconstruction", "codebook"}
    assert [status["step"] for status in seen] == list(range(1, 121))
    assert np.mean(errors[-20:]) < 0.8 * np.mean(errors[:20])


def test_labels_change_nothing(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 4)
    bare = [type(study)(study.id, study.image) for study in studies]
    versions = [
        pretrain(some, tmp_path / name, tiny_config(), device="cpu").version
        for name, some in (("with", studies), ("without", bare), ("other order", bare[::-1]))
    ]
    assert len({version.manifest["sha256"] for version in versions}) == 1


def test_what_is_published_segments_nothing_and_counts_codes(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3, 0)
    version = pretrain(studies, tmp_path / "run", tiny_config(), device="cpu").version
    assert not version.segments
    assert version.manifest["data"] == version.manifest["data"] | {"labelled": [], "unlabelled": 3}
    predictor = Predictor.load(tmp_path / "run", "cpu")
    volume = read_image(studies[0].image)
    with pytest.raises(ModelError, match="images alone"):
        predictor.predict(volume)
    signals = predictor.signals(volume, draws=2)
    assert signals.usage.sum() > 0
    np.testing.assert_array_equal(signals.foreground_usage, signals.usage)
    assert np.isnan(signals.entropy).all()
    assert np.isnan(signals.disagreement).all()
    assert not signals.foreground.any()
    assert signals.features.any()


def test_an_unreadable_study_is_left_out_and_named(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3, 0)
    studies[1].image.write_bytes(b"no image")
    result = pretrain(studies, tmp_path / "run", tiny_config(), device="cpu")
    assert list(result.left_out) == ["s02"]
    assert str(studies[1].image) in result.left_out["s02"]
    with pytest.raises(DataError, match="can be read"):
        pretrain(studies[1:2], tmp_path / "other", tiny_config(), device="cpu")
    assert ModelStore(tmp_path / "other" / "models").live() is None


def test_a_model_that_segments_is_never_replaced(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3)
    train(studies, tmp_path / "run", tiny_config(), device="cpu")
    with pytest.raises(DataError, match="trained with labels"):
        pretrain(studies, tmp_path / "run", tiny_config(), device="cpu")
    # The other way round the first training that knows structures is the better one.
    pretrain(studies, tmp_path / "other", tiny_config(), device="cpu")
    live = train(studies, tmp_path / "other", tiny_config(), device="cpu").live
    assert live is not None
    assert live.segments


def test_a_network_without_codebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.quantized"):
        pretrain(write_studies(tmp_path, 1, 0), tmp_path / "run", tiny_config({"model.quantized": False}), device="cpu")


def test_from_a_folder_of_images_to_the_first_study_to_label(tmp_path: Path) -> None:
    """The names of the structures need not even be known."""
    write_studies(tmp_path, 4, 0)
    settings = ["data.patch_size=[8,8,8]", "model.channels=[4,8]", "model.codebook_size=16", "model.code_dim=4"]
    settings += ["model.first_quantized_level=1"]
    torch.manual_seed(0)

    def run(*arguments: object) -> str:
        outcome = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert outcome.exit_code == 0, outcome.output
        return outcome.output

    images, out = tmp_path / "images", tmp_path / "run"
    said = run("pretrain", "--images", images, "--out", out, "--steps", 4, *[f"--set={one}" for one in settings])
    assert "segments nothing" in said
    ranking = tmp_path / "ranking.json"
    run("rank", "--model", out, "--images", images, "--strategy", "codebook_coverage", "--top", 2, "--out", ranking)
    first, second = json.loads(ranking.read_text(encoding="utf-8"))["studies"]
    assert first["id"] != second["id"]
    assert first["score"] > 0
