import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from servers import LEAN

import vqseg
from vqseg.config import load_config
from vqseg.data.phantom import LABELS, write_demo_studies
from vqseg.data.studies import find_studies
from vqseg.errors import ConfigError, TrainingError
from vqseg.inference.predictor import Predictor
from vqseg.store import ModelStore
from vqseg.training import run as run_module
from vqseg.training.checkpoint import load_checkpoint
from vqseg.training.run import train
from vqseg.training.status import read_status
from vqseg.training.trainer import Trainer

SETTINGS = {
    "data.labels": LABELS,
    "data.patch_size": [16, 16, 16],
    "data.spacing": [16.0, 16.0, 16.0],
    "model.channels": [4, 8],
    "model.first_quantized_level": 1,
    "model.codebook_size": 32,
    "model.code_dim": 4,
    "train.steps": 12,
    "train.validate_every": 4,
    "train.checkpoint_every": 3,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_demo_studies(folder, count=5, labelled=4)
    return folder


@pytest.fixture
def studies(folder):
    return find_studies(folder, folder / "labels" / "final")


class StopError(Exception):
    pass


def train_until(steps: int, monkeypatch, studies, run: Path, settings=SETTINGS, method="vqseg", resume=False) -> None:
    """Let a training die right after its step number `steps`, as a killed process would."""
    original = run_module._Run._after_step

    def after_step(self, done):
        original(self, done)
        if done.step == steps:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "_after_step", after_step)
        with pytest.raises(StopError):
            train(studies, run, load_config(None, settings), method=method, resume=resume)


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(run / "checkpoints")
    return {f"{part}.{k}": v for part in ("student", "teacher") for k, v in getattr(checkpoint, part).items()}


@pytest.mark.parametrize("method", ["vqseg", "supervised"])
def test_stopped_and_resumed_equals_run_through_bit_for_bit(studies, tmp_path, monkeypatch, method):
    config = load_config(None, SETTINGS)
    through = train(studies, tmp_path / "through", config, method=method)
    train_until(7, monkeypatch, studies, tmp_path / "stopped", method=method)
    assert load_checkpoint(tmp_path / "stopped" / "checkpoints").step == 6
    resumed = train(studies, tmp_path / "stopped", config, method=method, resume=True)
    assert resumed.steps == through.steps == 12
    assert resumed.best == through.best
    expected, found = weights(tmp_path / "through"), weights(tmp_path / "stopped")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_other_settings_start_anew(studies, tmp_path, monkeypatch):
    train_until(4, monkeypatch, studies, tmp_path)
    train(studies, tmp_path, load_config(None, SETTINGS | {"train.steps": 2}), resume=True)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events if event["event"] in ("start", "anew", "resume")] == [
        "start",
        "anew",
        "start",
    ]


def test_a_label_that_arrived_meanwhile_is_used_when_training_continues(studies, tmp_path, monkeypatch):
    few = [replace(study, label=None) if study.id.endswith("4") else study for study in studies]
    train_until(4, monkeypatch, few, tmp_path)
    before = read_status(tmp_path)["labelled"]
    train(studies, tmp_path, load_config(None, SETTINGS), resume=True)
    assert read_status(tmp_path)["labelled"] == before + 1


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_checkpoint_intact(studies, tmp_path, monkeypatch):
    original = Trainer._losses

    def losses(self, *batches):
        terms = original(self, *batches)
        return {name: value * float("nan") for name, value in terms.items()} if self.step == 7 else terms

    monkeypatch.setattr(Trainer, "_losses", losses)
    with pytest.raises(TrainingError, match="not finite at step 8"):
        train(studies, tmp_path, load_config(None, SETTINGS))
    assert read_status(tmp_path)["state"] == "failed"
    checkpoint = load_checkpoint(tmp_path / "checkpoints")
    assert checkpoint.step == 6
    finite = [v for k, v in checkpoint.student.items() if v.is_floating_point()]
    assert all(bool(value.isfinite().all()) for value in finite)


def test_the_first_validation_publishes_a_usable_model(studies, tmp_path, monkeypatch):
    train_until(4, monkeypatch, studies, tmp_path)
    assert Predictor.load(tmp_path).labels == LABELS


def test_the_champion_stays_unless_the_new_model_is_at_least_as_good(studies, tmp_path):
    config = load_config(None, SETTINGS | {"train.steps": 60, "train.validate_every": 20, "train.learning_rate": 0.01})
    champion = train(studies, tmp_path, config)
    assert champion.best > 0.05
    worse = load_config(None, SETTINGS | {"train.steps": 1, "train.validate_every": 1, "train.learning_rate": 1e-9})
    result = train(studies, tmp_path, worse)
    assert result.best < champion.best
    assert result.live.name == champion.live.name


def test_validation_studies_are_never_trained_on(studies, tmp_path):
    train(studies, tmp_path, load_config(None, SETTINGS))
    manifest = ModelStore(tmp_path / "models").live().manifest
    validated = set(manifest["validation"]["per_study"])
    assert validated
    assert validated.isdisjoint(manifest["data"]["labelled"])
    assert len(validated) + len(manifest["data"]["labelled"]) == 4


@pytest.mark.parametrize("labelled", [1, 2])
def test_too_few_labels_to_split_still_train_and_say_what_is_validated_on(studies, tmp_path, labelled):
    few = [study if number < labelled else replace(study, label=None) for number, study in enumerate(studies)]
    train(few, tmp_path, load_config(None, SETTINGS | {"train.steps": 4}))
    assert "it trains on" in read_status(tmp_path)["validated_on"]
    assert ModelStore(tmp_path / "models").live().manifest["data"]["unlabelled"] == 5 - labelled


def test_unlabelled_studies_change_what_is_learnt_and_need_no_mask(studies, tmp_path):
    labelled = [study for study in studies if study.label]
    train(labelled, tmp_path / "without", load_config(None, SETTINGS))
    train(studies, tmp_path / "with", load_config(None, SETTINGS))
    name = "student.segmentation.head.weight"
    assert not torch.equal(weights(tmp_path / "without")[name], weights(tmp_path / "with")[name])


def test_bad_studies_are_left_out_and_named(folder, studies, tmp_path):
    broken = tmp_path / "phantom_99.nii.gz"
    broken.write_bytes(b"not an image")
    bad_label = tmp_path / "phantom_02.nii.gz"
    bad_label.write_bytes(b"not a mask")
    changed = [replace(s, label=bad_label) if s.id == "phantom_02" else s for s in studies]
    changed.append(replace(studies[0], id="phantom_99", image=broken))
    result = train(changed, tmp_path / "run", load_config(None, SETTINGS))
    assert {entry["id"] for entry in result.left_out} == {"phantom_02", "phantom_99"}
    assert read_status(tmp_path / "run")["left_out"] == result.left_out
    assert all("nii.gz" in entry["reason"] for entry in result.left_out)


def test_without_any_label_it_says_what_to_do(studies, tmp_path):
    with pytest.raises(TrainingError, match="label at least one study"):
        train([replace(study, label=None) for study in studies], tmp_path, load_config(None, SETTINGS))
    with pytest.raises(ConfigError, match=r"data\.labels"):
        train(studies, tmp_path, load_config(None, SETTINGS | {"data.labels": {}}))
    with pytest.raises(ConfigError, match="known methods"):
        train(studies, tmp_path, load_config(None, SETTINGS), method="magic")


CHILD = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vqseg.config import load_config
from vqseg.data.studies import find_studies
from vqseg.training.run import train
folder, run, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
train(find_studies(folder, folder / "labels" / "final"), run, load_config(None, settings), resume=True)
"""


# A file cannot grow beyond 16 KiB, as if the disk were full: less than a model takes.
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))"


def start(folder: Path, run: Path, settings: dict, first: str = "") -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{LEAN}{os.pathsep}{Path(vqseg.__file__).parents[1]}"}
    command = [sys.executable, "-c", f"{first}\n{CHILD}", str(folder), str(run), json.dumps(settings)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8")


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while (read_status(run) or {}).get("step", 0) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the training does not get on"
        time.sleep(0.02)


def test_sigkill_leaves_a_model_and_a_checkpoint_and_a_second_process_is_refused(folder, tmp_path, monkeypatch):
    settings = SETTINGS | {"train.steps": 3000, "train.checkpoint_every": 1, "train.validate_every": 1}
    studies = find_studies(folder, folder / "labels" / "final")
    process = start(folder, tmp_path, settings)
    wait_for_step(tmp_path, 3, process)
    with pytest.raises(TrainingError, match=f"process {process.pid}"):
        train(studies, tmp_path, load_config(None, settings))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_status(tmp_path)["state"] == "interrupted"
    step = load_checkpoint(tmp_path / "checkpoints").step
    assert step >= 3
    assert Predictor.load(tmp_path).labels == LABELS
    train_until(step + 2, monkeypatch, studies, tmp_path, settings, resume=True)
    assert load_checkpoint(tmp_path / "checkpoints").step > step
    assert Predictor.load(tmp_path).labels == LABELS


def test_a_full_disk_ends_a_training_in_words_and_leaves_model_and_checkpoint(folder, tmp_path, monkeypatch):
    settings = SETTINGS | {"train.steps": 10**6, "train.checkpoint_every": 1, "train.validate_every": 1}
    settings |= {"model.channels": [16, 32]}
    train_until(3, monkeypatch, find_studies(folder, folder / "labels" / "final"), tmp_path, settings)
    live, before = ModelStore(tmp_path / "models").live(), load_checkpoint(tmp_path / "checkpoints").step
    process = start(folder, tmp_path, settings, FULL_DISK)
    assert "TrainingError" in process.communicate(timeout=120)[1]
    status = read_status(tmp_path)
    assert status["state"] == "failed"
    assert status["message"].startswith(f"{tmp_path}: File too large; the live model")
    assert ModelStore(tmp_path / "models").live() == live
    Predictor.load(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints").step == before
