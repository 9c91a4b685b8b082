"""Figures of a training, read back from where the trackers keep them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_config, write_studies

from vqseg.config import Config
from vqseg.data.studies import Study
from vqseg.errors import ConfigError
from vqseg.training import run as run_module
from vqseg.training import tracking
from vqseg.training.history import read_trainings
from vqseg.training.points import Points, read_points, scalars_of
from vqseg.training.run import train
from vqseg.training.status import read_status
from vqseg.training.tracker import Tracker

# mlflow 3.17 uses a loader that sqlalchemy 2.1 deprecates; nobody who reads this can mend that.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

Curves = dict[str, dict[int, float]]


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return write_studies(tmp_path_factory.mktemp("studies"), 4, 3)


def tracked(*to: str, **sets: Any) -> Config:
    # Names that MLflow would refuse as they are.
    labels = {"data.labels": {"GTV (1) / left": 1, "..": 2}}
    return tiny_config({"tracking.to": to, "tracking.every": 1, **labels, **sets})


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def expected_curves(run: Path) -> Curves:
    (training,) = read_trainings(run)
    validations = {event["step"]: event for event in training.validations}
    curves: Curves = {}
    for point in read_points(run):
        for name, value in scalars_of(point, validations.get(point["step"])).items():
            curves.setdefault(name, {})[point["step"]] = value
    return curves


def curves_of_tensorboard(run: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run / "tensorboard").iterdir()
    read = EventAccumulator(str(folder)).Reload()
    points = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    assert all(len({p.step for p in curve}) == len(curve) for curve in points.values()), "a step stands there twice"
    return {tag: {point.step: point.value for point in curve} for tag, curve in points.items()}


def curves_of_mlflow(run: Path) -> tuple[Curves, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vqseg")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    points = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    assert all(len({p.step for p in curve}) == len(curve) for curve in points.values()), "a step stands there twice"
    assert found.data.params["train.steps"] == "6"
    return {name: {p.step: p.value for p in curve} for name, curve in points.items()}, found.info.status


def test_trackers_hold_what_the_events_say_each_step_once_also_of_a_training_that_is_continued(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run_module._Run._after_step

    def stop_behind_the_checkpoint(self: Any, done: Any) -> None:
        original(self, done)
        if done.step == 5:
            raise StopError

    config = tracked("tensorboard", "mlflow")
    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "_after_step", stop_behind_the_checkpoint)
        with pytest.raises(StopError):
            train(studies, tmp_path, config, device="cpu")
    assert curves_of_mlflow(tmp_path)[1] == "FAILED"
    # TensorBoard reads the files of a folder in the order of the seconds in their names.
    time.sleep(1 - time.time() % 1)
    train(studies, tmp_path, config, device="cpu", resume=True)
    written = (tmp_path / "last_training" / "points.jsonl").read_text(encoding="utf-8")
    assert written.count('"step": 5') == 2

    expected = expected_curves(tmp_path)
    assert list(expected["learning_rate"]) == [1, 2, 3, 4, 5, 6]
    assert list(expected["validation/dice"]) == [3, 6]
    found = curves_of_tensorboard(tmp_path)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name].keys() == curve.keys(), name
        np.testing.assert_allclose(list(found[name].values()), list(curve.values()), rtol=1e-6)  # float32
    found, state = curves_of_mlflow(tmp_path)
    renamed = {"validation/dice_of/GTV (1) / left": "validation/dice_of/GTV _1_ _ left"}
    renamed |= {"validation/dice_of/..": "validation/dice_of/_"}
    assert found == {renamed.get(name, name): curve for name, curve in expected.items()}
    assert state == "FINISHED"
    assert not [event for event in events(tmp_path) if event["event"] == "tracker_failed"]


class Broken(Tracker):
    """Raises where it is told to."""

    where = ""

    def _do(self, what: str) -> None:
        if what == self.where:
            raise OSError(28, "No space left on device")

    def __init__(self, run: Path, training: str, done: int, settings: Mapping[str, str]) -> None:
        self._do("begin")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._do("scalars")

    def flush(self) -> None:
        self._do("flush")

    def end(self, state: str) -> None:
        self._do("end")


@pytest.mark.parametrize("where", ["begin", "scalars", "flush", "end"])
def test_a_tracker_that_fails_is_said_once_and_the_training_goes_on(
    where: str, studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "where", where)
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", Broken)
    train(studies, tmp_path, tracked("tensorboard"), device="cpu")
    assert (read_status(tmp_path) or {})["state"] == "done"
    (failed,) = [event for event in events(tmp_path) if event["event"] == "tracker_failed"]
    assert failed["tracker"] == "tensorboard"
    assert "No space left" in failed["reason"]


def test_broken_files_of_the_trackers_do_not_end_a_training(studies: list[Study], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    (tmp_path / "tensorboard").write_text("a file where a folder should be", encoding="utf-8")
    train(studies, tmp_path, tracked("mlflow", "tensorboard"), device="cpu")
    assert (read_status(tmp_path) or {})["state"] == "done"
    failed = {event["tracker"]: event["reason"] for event in events(tmp_path) if event["event"] == "tracker_failed"}
    assert failed.keys() == {"mlflow", "tensorboard"}
    assert "not a database" in failed["mlflow"]


def test_mlflow_that_is_asked_for_and_missing_is_said_before_anything_is_made(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'mlflow"):
        train(studies, tmp_path / "run", tracked("mlflow"), device="cpu")
    assert not (tmp_path / "run").exists()
    tracking.check_trackers(["tensorboard"])


def test_a_training_with_default_settings_writes_for_tensorboard_alone(studies: list[Study], tmp_path: Path) -> None:
    train(studies, tmp_path, tiny_config(), device="cpu")
    assert curves_of_tensorboard(tmp_path).keys() == expected_curves(tmp_path).keys()
    assert not (tmp_path / "mlflow.db").exists()


def test_without_trackers_nothing_is_written_but_the_events(studies: list[Study], tmp_path: Path) -> None:
    train(studies, tmp_path, tracked(), device="cpu")
    assert not {"tensorboard", "mlflow.db"} & {path.name for path in tmp_path.iterdir()}
    assert len(read_points(tmp_path)) == 6


def test_another_way_of_tracking_is_no_other_training(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*unused: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "_validate", stop)  # after the checkpoint of step 2
        with pytest.raises(KeyboardInterrupt):
            train(studies, tmp_path, tracked(), device="cpu")
    assert (read_status(tmp_path) or {})["state"] == "stopped"
    train(studies, tmp_path, tracked("tensorboard"), device="cpu", resume=True)
    assert [event["event"] for event in events(tmp_path) if event["event"] in ("start", "anew", "resume")] == [
        "start",
        "resume",
    ]


def test_points_are_those_of_the_last_training_each_once_whatever_was_killed(tmp_path: Path) -> None:
    assert read_points(tmp_path) == []
    Points(tmp_path, 0).add(9, {"a": 1.0}, 0.1)
    points = Points(tmp_path, 0)
    points.add(1, {"a": 1.0}, 0.1)
    points.add(2, {"a": 2.0}, 0.1)
    with (tmp_path / "last_training" / "points.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"step": 3, "lo')
    Points(tmp_path, 1).add(2, {"a": 3.0}, 0.2)
    assert [(point["step"], point["losses"]["a"]) for point in read_points(tmp_path)] == [(1, 1.0), (2, 3.0)]
