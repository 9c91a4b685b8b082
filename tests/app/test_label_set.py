"""Where the names and values of the structures come from, first source first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from vqseg.errors import ConfigError, DataError


@pytest.fixture
def studies(tmp_path: Path, app_module: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make a datastore whose labels hold the given values; returns it with its label set."""
    monkeypatch.setattr(app_module("datastore").settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)

    def make(labels: list[list[int]], configured: dict[str, int] | None = None) -> Any:
        final = tmp_path / "labels" / "final"
        final.mkdir(parents=True)
        for number, values in enumerate(labels):
            nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / f"case{number}.nii.gz")
            if values:
                mask = np.resize(np.array(values, np.uint8), (4, 4, 4))
                nib.save(nib.Nifti1Image(mask, np.eye(4)), final / f"case{number}.nii.gz")
        label_set = app_module("labels").LabelSet(configured or {}, tmp_path)
        return app_module("datastore").StudiesFolder(str(tmp_path), label_set)

    return make


def test_options_come_first(studies: Any, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"other": 1}')
    datastore = studies([[0, 1, 2]], {"lung": 1, "tumour": 2})
    assert datastore.label_set.resolve(datastore) == {"lung": 1, "tumour": 2}


def test_then_the_file_in_the_folder(studies: Any, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"tumour": 2, "lung": 1}')
    datastore = studies([[0, 5]])
    assert list(datastore.label_set.resolve(datastore).items()) == [("lung", 1), ("tumour", 2)]


def test_then_the_names_that_clients_gave(studies: Any, tmp_path: Path) -> None:
    datastore = studies([[0, 1, 2], []])
    datastore.update_label_info("case0", "final", {"label_info": [{"name": "lung", "idx": 1}, {"name": "x", "idx": 2}]})
    assert datastore.label_set.resolve(datastore) == {"lung": 1, "x": 2}


def test_then_the_values_in_the_labels(studies: Any, tmp_path: Path) -> None:
    datastore = studies([[0, 1], [0, 3], []])
    assert datastore.label_set.resolve(datastore) == {"label_1": 1, "label_2": 2, "label_3": 3}
    (tmp_path / "labels" / "final" / "case1.nii.gz").write_bytes(b"damaged")
    assert datastore.label_set.resolve(datastore) == {"label_1": 1}


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 2}', '{"a": "x"}', '{"background": 1}'])
def test_wrong_file_is_named(app_module: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ConfigError, match=r"labels\.json: expected"):
        app_module("labels").LabelSet({}, tmp_path)


def test_training_says_what_is_missing(studies: Any, app_module: Any, tmp_path: Path) -> None:
    datastore = studies([[], []])
    options = app_module("options").Options({})
    labels: dict[str, int] = {}
    trainer = app_module("training").VQSegTraining(tmp_path / "run", options, lambda: labels)
    assert datastore.label_set.resolve(datastore) == {}
    with pytest.raises(DataError, match="no study is labelled yet"):
        trainer.check({}, datastore)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "labels" / "final" / "case0.nii.gz")
    datastore.refresh()
    with pytest.raises(DataError, match=r"names of the structures are not known.*labels\.json"):
        trainer.check({}, datastore)
    labels["lung"] = 1
    config, method, _ = trainer.check({"steps": "5", "client_id": "reader"}, datastore)
    assert (config.train.steps, config.data.labels, method) == (5, {"lung": 1}, "vqseg")


def test_every_unlabelled_image_goes_into_the_training(studies: Any, app_module: Any) -> None:
    datastore = studies([[0, 1], [], []])
    found = app_module("training").studies_of(datastore)
    assert [(study.id, study.label is not None) for study in found] == [
        ("case0", True),
        ("case1", False),
        ("case2", False),
    ]


def test_two_writers_lose_no_label(studies: Any, app_module: Any, tmp_path: Path) -> None:
    """MONAI Label's own datastore writes back its whole index and so erases what another process has saved."""
    server = studies([[], []], {"lung": 1})
    other = app_module("datastore").StudiesFolder(str(tmp_path), server.label_set)
    mask = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), mask)
    server.save_label("case0", str(mask), "final", {})
    other.save_label("case1", str(mask), "final", {})
    server.update_image_info("case0", {"seen": True})
    kept = json.loads((tmp_path / "datastore_v2.json").read_text())["objects"]
    assert [set(kept[name]["labels"]) for name in ("case0", "case1")] == [{"final"}, {"final"}]
