"""Reservations and the cache of code usage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from vqseg.config import Active, load_config
from vqseg.networks.build import build_network
from vqseg.store import ModelStore


def test_a_study_is_not_handed_to_two_clients(app_module: Any) -> None:
    now = [0.0]
    held = app_module("reservations").Reservations(60, lambda: now[0])
    assert held.take_first(["a", "b"], "one") == "a"
    assert held.take_first(["a", "b"], "one") == "a"
    assert held.take_first(["a", "b"], "two") == "b"
    assert held.take_first(["a", "b"], "three") is None
    assert held.of_others("one") == {"b"}
    now[0] = 61.0
    assert held.take_first(["a", "b"], "three") == "a"


def test_a_client_holds_one_study_and_gets_it_again(app_module: Any) -> None:
    held = app_module("reservations").Reservations(60, lambda: 0.0)
    assert held.take_first(["a", "b", "c"], "one") == "a"
    assert held.take_first(["c", "b", "a"], "one") == "a"
    assert held.take_first(["c", "b"], "one") == "c"
    assert held.of_others("two") == {"c"}


def test_uniform_gives_a_client_its_own_study_again(
    app_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datastore_module = app_module("datastore")
    monkeypatch.setattr(datastore_module.settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    for number in range(20):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / f"case{number}.nii.gz")
    datastore = datastore_module.StudiesFolder(str(tmp_path), app_module("labels").LabelSet({"lung": 1}, tmp_path))
    live = app_module("live_model").LiveModel(tmp_path / "run", "cpu")
    usage = app_module("usage_cache").UsageCache(tmp_path / "run" / "usage")
    held = app_module("reservations").Reservations(60)
    strategy = app_module("strategies").NextStudy("uniform", Active(), live, usage, held, 1.0)
    assert len({strategy({"client_id": "reader"}, datastore)["id"] for _ in range(5)}) == 1


def test_no_time_means_no_reservation(app_module: Any) -> None:
    held = app_module("reservations").Reservations(0, lambda: 0.0)
    assert [held.take_first(["a"], client) for client in ("one", "two")] == ["a", "a"]


def test_counts_belong_to_one_model_and_one_image(app_module: Any, tmp_path: Path) -> None:
    cache = app_module("usage_cache").UsageCache(tmp_path / "usage")
    image = tmp_path / "case.nii.gz"
    image.write_bytes(b"voxels")
    counts = np.arange(5)
    cache.put("0001-a", image, counts)
    np.testing.assert_array_equal(cache.get("0001-a", image), counts)
    assert cache.get("0002-b", image) is None
    os.utime(image, ns=(1, 1))
    assert cache.get("0001-a", image) is None


def test_counts_that_cannot_be_kept_fail_nothing(app_module: Any, tmp_path: Path) -> None:
    (tmp_path / "usage").write_bytes(b"a file where the folder should be")
    image = tmp_path / "case.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), image)
    cache = app_module("usage_cache").UsageCache(tmp_path / "usage")

    class Live:
        def identity(self) -> str:
            return "0001-a"

        def usage(self, volume: Any) -> tuple[np.ndarray, str]:
            return np.arange(5), "0001-a"

    class Store:
        def get_image_uri(self, study: str) -> str:
            return str(image)

    pool = app_module("pool").usage_of(["case"], Store(), Live(), cache)
    assert (set(pool.counts), pool.left_out) == ({"case"}, {})


def test_damaged_and_outdated_counts_are_not_used(app_module: Any, tmp_path: Path) -> None:
    cache = app_module("usage_cache").UsageCache(tmp_path / "usage")
    image = tmp_path / "case.nii.gz"
    image.write_bytes(b"voxels")
    cache.put("0001-a", image, np.arange(5))
    next((tmp_path / "usage" / "0001-a").glob("*.npy")).write_bytes(b"\x93NUMPY")
    assert cache.get("0001-a", image) is None
    cache.put("0002-b", image, np.arange(5))
    cache.forget_all_but("0002-b")
    assert [folder.name for folder in (tmp_path / "usage").iterdir()] == ["0002-b"]


def test_nothing_left_is_an_empty_reply(app_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datastore_module = app_module("datastore")
    monkeypatch.setattr(datastore_module.settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    for name in ("one", "two"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    datastore = datastore_module.StudiesFolder(str(tmp_path), app_module("labels").LabelSet({"lung": 1}, tmp_path))
    live = app_module("live_model").LiveModel(tmp_path / "run", "cpu")
    usage = app_module("usage_cache").UsageCache(tmp_path / "run" / "usage")
    held = app_module("reservations").Reservations(60)
    strategy = app_module("strategies").NextStudy("codebook_entropy", Active(), live, usage, held, 1.0)
    given = [strategy({"client_id": name}, datastore) for name in ("a", "b", "c")]
    assert {reply.get("id") for reply in given} == {"one", "two", None}
    assert given[2] == {}


def test_a_model_without_a_codebook_cannot_score(
    app_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datastore_module = app_module("datastore")
    monkeypatch.setattr(datastore_module.settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "case.nii.gz")
    datastore = datastore_module.StudiesFolder(str(tmp_path), app_module("labels").LabelSet({"lung": 1}, tmp_path))
    config = load_config(overrides={"data.labels": {"lung": 1}, "model.channels": [2, 4], "model.quantized": False})
    ModelStore(tmp_path / "run" / "models").publish(build_network(config), {"config": config.model_dump(mode="json")})
    live = app_module("live_model").LiveModel(tmp_path / "run", "cpu")
    usage = app_module("usage_cache").UsageCache(tmp_path / "run" / "usage")
    held = app_module("reservations").Reservations(60)
    strategy = app_module("strategies").NextStudy("codebook_entropy", Active(), live, usage, held, 1.0)
    reply = strategy({"client_id": "reader"}, datastore)
    assert (reply["id"], reply["strategy_used"]) == ("case", "uniform")
    assert "no codebook" in reply["note"]


@pytest.mark.parametrize("name", ["codebook_rarity", "codebook_coverage"])
def test_the_labelled_studies_count_and_the_reply_says_why(
    app_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of two open studies the one that is the same as the labelled one comes last."""
    datastore_module = app_module("datastore")
    monkeypatch.setattr(datastore_module.settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    noise, ramp = np.random.default_rng(0).normal(size=(16, 16, 16)), np.mgrid[:16, :16, :16][0] / 4.0
    for study, voxels in {"a_same": noise, "b_other": ramp, "labelled": noise}.items():
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), tmp_path / f"{study}.nii.gz")
    (tmp_path / "labels" / "final").mkdir(parents=True)
    mask = nib.Nifti1Image((noise > 1).astype(np.uint8), np.eye(4))
    nib.save(mask, tmp_path / "labels" / "final" / "labelled.nii.gz")
    datastore = datastore_module.StudiesFolder(str(tmp_path), app_module("labels").LabelSet({"lung": 1}, tmp_path))
    assert datastore.get_labeled_images() == ["labelled"]
    overrides = {"data.labels": {"lung": 1}, "model.channels": [4, 8], "data.spacing": [1, 1, 1]}
    config = load_config(overrides=overrides | {"data.patch_size": [16, 16, 16], "model.codebook_size": 64})
    torch.manual_seed(0)
    ModelStore(tmp_path / "run" / "models").publish(build_network(config), {"config": config.model_dump(mode="json")})
    live = app_module("live_model").LiveModel(tmp_path / "run", "cpu")
    usage = app_module("usage_cache").UsageCache(tmp_path / "run" / "usage")
    held = app_module("reservations").Reservations(60)
    settings = Active(enough_tokens=1000)
    late = app_module("strategies").NextStudy(name, settings, live, usage, held, 0.0)({"client_id": "late"}, datastore)
    assert late["strategy_used"] == "uniform"
    assert "labelled studies are not scored yet" in late["note"]
    held = app_module("reservations").Reservations(60)
    strategy = app_module("strategies").NextStudy(name, settings, live, usage, held, 60.0)
    reply = strategy({"client_id": "reader"}, datastore)
    assert (reply["id"], reply["strategy_used"], reply["scored"], reply["rank"]) == ("b_other", name, 2, 1)
    assert 1 <= len(reply["parts"]) <= 3
    assert all(part.startswith("code ") and value > 0 for part, value in reply["parts"].items())
    assert "codes" in reply["reason"]
