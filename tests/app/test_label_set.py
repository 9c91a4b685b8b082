"""Where the names and values of the structures come from, first source first."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from vqseg.errors import ConfigError, DataError, LabelError


@pytest.fixture
def studies(tmp_path: Path, app_module: Any, unwatched: None) -> Callable[..., Any]:
    """Make a datastore whose labels hold the given values; returns it with its label set."""

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
    (tmp_path / "labels.json").write_text('{"other": 1}', encoding="utf-8")
    datastore = studies([[0, 1, 2]], {"lung": 1, "tumour": 2})
    assert datastore.label_set.resolve(datastore) == {"lung": 1, "tumour": 2}


def test_then_the_file_in_the_folder(studies: Any, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"tumour": 2, "lung": 1}', encoding="utf-8")
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
    (tmp_path / "labels.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.json: expected"):
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
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used here"):
        trainer.check({"device": "gpu"}, datastore)


def test_every_unlabelled_image_goes_into_the_training(studies: Any, app_module: Any) -> None:
    datastore = studies([[0, 1], [], []])
    found = app_module("training").pool_of(datastore).studies
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
    kept = json.loads((tmp_path / "datastore_v2.json").read_text(encoding="utf-8"))["objects"]
    assert [set(kept[name]["labels"]) for name in ("case0", "case1")] == [{"final"}, {"final"}]


@pytest.mark.parametrize("label_info", [5, "lung", {"lung": 1}, [{"name": "lung", "idx": float("inf")}], [{"idx": 1}]])
def test_names_of_another_form_are_refused(app_module: Any, label_info: Any) -> None:
    with pytest.raises(ConfigError, match="label_info: expected a list"):
        app_module("labels").names_of(label_info)


@pytest.mark.parametrize("bad", [5, [{"name": "lung", "idx": 1}, {"name": "lung", "idx": 2}]])
def test_bad_stored_names_are_skipped(studies: Any, bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    datastore = studies([[0, 1], [0, 2]])
    datastore.update_label_info("case0", "final", {"label_info": bad})
    datastore.update_label_info("case1", "final", {"label_info": [{"name": "tumour", "idx": 2}]})
    assert datastore.label_set.resolve(datastore) == {"label_1": 1, "tumour": 2}
    assert "case0: the names kept with its label are not used" in caplog.text


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"lung": 1, "tumour": 2, "new": 3}, ""),
        ({"tumour": 1, "lung": 2}, "'case0': its label was saved with 'lung' as value 1, but now 'lung' is 2; keep"),
        (
            {"liver": 1, "tumour": 2},
            "as value 1, but now 1 is 'liver'; keep the order .* add new names at the end",
        ),
    ],
)
def test_labels_saved_under_another_order_are_not_trained(
    studies: Any, app_module: Any, tmp_path: Path, now: dict[str, int], words: str
) -> None:
    datastore = studies([[0, 1, 2], [0, 1]])
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    datastore.update_label_info("case0", "final", {"label_info": names})
    trainer = app_module("training").VQSegTraining(tmp_path / "run", app_module("options").Options({}), lambda: now)
    if not words:
        assert trainer.check({}, datastore)[0].data.labels == now
        return
    with pytest.raises(DataError, match=words):
        trainer.check({}, datastore)


def test_a_set_made_of_submitted_labels_grows(studies: Any, tmp_path: Path) -> None:
    datastore = studies([[], []])
    mask = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image(np.resize(np.arange(3, dtype=np.uint8), (4, 4, 4)), np.eye(4)), mask)
    first = [{"name": "tumour", "idx": 1}, {"name": "lung", "idx": 2}]
    datastore.save_label("case0", str(mask), "final", {"label_info": first})
    # The client numbers alphabetically: what is known keeps its value, what is new gets the next one.
    second = [{"name": "aorta", "idx": 1}, {"name": "lung", "idx": 2}]
    datastore.save_label("case1", str(mask), "final", {"label_info": second})
    assert datastore.label_set.resolve(datastore) == {"tumour": 1, "lung": 2, "aorta": 3}
    kept = np.asarray(nib.load(tmp_path / "labels" / "final" / "case1.nii.gz").dataobj)
    np.testing.assert_array_equal(np.unique(kept), [0, 2, 3])


def test_a_configured_set_does_not_grow(studies: Any, tmp_path: Path) -> None:
    datastore = studies([[]], {"lung": 1})
    mask = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), mask)
    with pytest.raises(LabelError, match="unknown structure 'aorta'; known: lung"):
        datastore.save_label("case0", str(mask), "final", {"label_info": [{"name": "aorta", "idx": 1}]})


def test_the_index_is_written_whole_or_not_at_all(
    studies: Any, app_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = studies([[], []], {"lung": 1})
    index = tmp_path / "datastore_v2.json"
    before = index.read_text(encoding="utf-8")
    with pytest.raises(ConfigError):
        server.update_image_info("case0", {"score": float("nan")})
    assert index.read_text(encoding="utf-8") == before
    assert "score" not in server.get_image_info("case0")

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("vqseg.files.os.replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            server.update_image_info("case0", {"seen": True})
    assert index.read_text(encoding="utf-8") == before
    assert "seen" not in server.get_image_info("case0")
    assert not list(tmp_path.glob(".writing-*"))


def test_a_reader_sees_what_another_process_wrote(studies: Any, app_module: Any, tmp_path: Path) -> None:
    server = studies([[], []], {"lung": 1})
    other = app_module("datastore").StudiesFolder(str(tmp_path), server.label_set)
    image = tmp_path.parent / "sent.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), image)
    assert other.add_image("arrived", str(image), {"from": "PACS"}) == "arrived"
    assert set(server.list_images()) == {"case0", "case1", "arrived"}
    assert {"from": "PACS", "name": "arrived.nii.gz"}.items() <= server.get_image_info("arrived").items()
    server.remove_image("arrived")
    assert set(other.list_images()) == {"case0", "case1"}


def test_the_watcher_still_finds_new_files(studies: Any, app_module: Any, tmp_path: Path) -> None:
    datastore_module = app_module("datastore")
    datastore = studies([[]], {"lung": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datastore_module.settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", True)
        watching = datastore_module.StudiesFolder(str(tmp_path), datastore.label_set)
    try:
        watching.update_image_info("case0", {"seen": True})
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "copied.nii.gz")
        end = time.monotonic() + 60
        while "copied" not in watching.list_images() and time.monotonic() < end:
            time.sleep(0.05)
        assert set(watching.list_images()) == {"case0", "copied"}
        assert watching.get_image_info("case0")["seen"] is True
    finally:
        watching._observer.stop()
        watching._observer.join(10)
