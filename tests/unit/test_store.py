"""Whatever happens while a model is published, a reader finds a whole one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from builders import state_of, tiny_config, tiny_network
from damage import flip_bit

import vqseg.store as store_module
from vqseg.config import load_config
from vqseg.errors import ModelError
from vqseg.networks.vqseg import VQSeg
from vqseg.store import ModelStore, find_version, load_weights

CONFIG = tiny_config()


def manifest(dice: float = 0.5) -> dict[str, Any]:
    return {"config": CONFIG.model_dump(mode="json"), "validation": {"dice": dice}}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with versions 0001, 0002 and 0003, each of its own weights."""
    store = ModelStore(tmp_path / "models")
    for seed in (1, 2, 3):
        store.publish(tiny_network(CONFIG, seed), manifest(seed / 10))
    return store


def live_name(store: ModelStore) -> str | None:
    live = store.live()
    return live and live.name


# Makes 0001, 0002 and 0003 of a store live in turn until its input is closed.
RESTLESS = """
import itertools, sys, threading
from pathlib import Path
from vqseg.store import ModelStore

store, ended = ModelStore(Path(sys.argv[1])), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print("ready", flush=True)
for name in itertools.cycle(["0001", "0002", "0003"]):
    store.make_live(name)
    if ended.wait(0.01):
        break
print(name)
"""


def test_empty_store(tmp_path: Path) -> None:
    assert ModelStore(tmp_path).live() is None
    assert ModelStore(tmp_path / "nowhere").versions() == []
    with pytest.raises(ModelError, match="no earlier version"):
        ModelStore(tmp_path).rollback()
    with pytest.raises(ModelError, match="train one first"):
        find_version(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        find_version(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_published_weights_come_back(store: ModelStore) -> None:
    assert [version.name for version in store.versions()] == ["0001", "0002", "0003"]
    for seed, version in enumerate(store.versions(), 1):
        network = tiny_network(version.config, 9)
        load_weights(network, version)
        for name, value in state_of(tiny_network(CONFIG, seed)).items():
            np.testing.assert_array_equal(state_of(network)[name], value)
        assert version.config == CONFIG
        assert version.score == seed / 10


def test_live_is_the_newest_until_it_is_rolled_back(store: ModelStore) -> None:
    assert live_name(store) == "0003"
    assert store.rollback().name == live_name(store) == "0002"
    assert store.publish(tiny_network(CONFIG), manifest()).name == live_name(store) == "0004"
    # Back to what was live before, which was 0002 and not 0003.
    assert store.rollback().name == live_name(store) == "0002"
    assert store.rollback().name == live_name(store) == "0001"
    with pytest.raises(ModelError, match="no earlier version"):
        store.rollback()
    assert live_name(store) == "0001"
    assert store.make_live("0003").name == live_name(store) == "0003"
    assert store.rollback().name == "0001"


def test_going_back_never_stays(store: ModelStore) -> None:
    store.make_live("0002")
    store.make_live("0002")
    assert store.rollback().name != "0002"


def test_unknown_version_lists_the_known_ones(store: ModelStore) -> None:
    with pytest.raises(ModelError, match=r"'0009'.*0001, 0002, 0003"):
        store.make_live("0009")
    assert live_name(store) == "0003"


def test_old_versions_are_removed_but_never_the_live_one(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, keep=2)
    for seed in range(4):
        store.publish(tiny_network(CONFIG, seed), manifest())
        live = store.live()
        assert live is not None
        load_weights(tiny_network(CONFIG), live)
    assert [version.name for version in store.versions()] == ["0003", "0004"]
    assert store.rollback().name == "0003"
    with pytest.raises(ModelError):  # 0002 is gone
        store.rollback()


def test_a_long_training_does_not_push_out_what_others_have_left(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, keep=4)
    trainings = ["first", "first", "second", *["long"] * 6]
    for seed, training in enumerate(trainings):
        store.publish(tiny_network(CONFIG, seed), manifest() | {"training": training})
        assert live_name(store) == f"{seed + 1:04d}"
    assert [version.name for version in store.versions()] == ["0002", "0003", "0008", "0009"]
    assert [store.rollback().name for _ in range(3)] == ["0008", "0003", "0002"]


def test_what_was_live_before_stays_however_many_trainings_there_were(tmp_path: Path) -> None:
    """Whoever has just read which version is live must find it, and one must be able to go back within a training."""
    store = ModelStore(tmp_path, keep=3)
    for seed, training in enumerate(["a", "b", "c", "d", "d", "d"]):
        store.publish(tiny_network(CONFIG, seed), manifest() | {"training": training})
    assert [version.name for version in store.versions()] == ["0003", "0005", "0006"]
    assert store.rollback().name == "0005"


def test_what_was_gone_back_to_stays_and_what_was_gone_back_from_does_not(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, keep=3)
    for seed, training in enumerate(["a", "a", "a"]):
        store.publish(tiny_network(CONFIG, seed), manifest() | {"training": training})
    assert store.rollback().name == "0002"
    store.publish(tiny_network(CONFIG, 3), manifest() | {"training": "b"})
    assert [version.name for version in store.versions()] == ["0001", "0002", "0004"]
    store.publish(tiny_network(CONFIG, 4), manifest() | {"training": "c"})
    assert [version.name for version in store.versions()] == ["0002", "0004", "0005"]


def test_the_network_of_a_manifest_that_knows_fewer_settings_is_the_one_it_was_made_with(store: ModelStore) -> None:
    """What came later had no other value then."""
    version = store.live()
    assert version is not None
    settings = version.manifest["config"]
    model = {key: value for key, value in settings["model"].items() if key not in ("code_groups", "shallow_skips")}
    older = replace(version, manifest=version.manifest | {"config": settings | {"model": model}})
    assert (older.config.model.code_groups, older.config.model.shallow_skips) == (1, False)
    assert load_config().model.code_groups is None


def test_run_store_and_version_are_all_found(store: ModelStore) -> None:
    for folder in (store.folder.parent, store.folder, store.folder / "0003"):
        assert find_version(folder).name == "0003"
    assert find_version(store.folder / "0001").name == "0001"


@pytest.mark.parametrize("interrupted", ["save", "write_json", "sha256"])
def test_a_crash_while_publishing_leaves_the_former_model_live(
    interrupted: str, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, interrupted, crash)
        with pytest.raises(KeyboardInterrupt):
            store.publish(tiny_network(CONFIG, 4), manifest())
    live = store.live()
    assert live is not None
    assert live.name == "0003"
    load_weights(tiny_network(CONFIG), live)
    assert len(store.versions()) == 3
    assert store.publish(tiny_network(CONFIG, 4), manifest()).name == live_name(store)


def test_a_crash_before_the_pointer_moves_loses_nothing(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "_point_at", lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.publish(tiny_network(CONFIG, 4), manifest())
    assert live_name(store) == "0003"
    assert store.make_live("0004").name == live_name(store)


def test_writers_of_two_processes_lose_nothing_of_each_other(store: ModelStore) -> None:
    command = [sys.executable, "-c", RESTLESS, store.folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        published = [store.publish(tiny_network(CONFIG, seed), manifest()).name for seed in range(12)]
        last = other.communicate()[0].strip()
    # Each was put at the end of what the other had left.
    history = store.history()
    assert [name for name in history if name in published] == published
    assert sorted(set(history) - set(published)) == ["0001", "0002", "0003"]
    assert live_name(store) == last


def test_a_writer_that_is_stuck_is_told_of(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_LONGEST_WAIT_SECONDS", 0.1)
    with filelock.FileLock(store.folder / "lock"), pytest.raises(ModelError, match=r"another process.*try again"):
        store.rollback()
    assert store.rollback().name == "0002"


def test_a_damaged_version_is_never_made_live_again(store: ModelStore) -> None:
    weights = store.folder / "0002" / "model.safetensors"
    whole = flip_bit(weights, 5000)
    with pytest.raises(ModelError, match=r"0002/model\.safetensors.*damaged"):
        store.make_live("0002")
    former = store.former()
    assert former is not None
    assert former.name == store.rollback().name == live_name(store) == "0001"
    weights.write_bytes(whole)
    assert store.make_live("0002").name == live_name(store)
    flip_bit(store.folder / "0003" / "manifest.json", 50)
    with pytest.raises(ModelError, match=r"0003/manifest\.json.*damaged"):
        store.make_live("0003")
    assert live_name(store) == "0002"


def test_one_trained_on_images_alone_never_follows_one_that_segments(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for seed in (1, 2):
        store.publish(tiny_network(CONFIG, seed), manifest() | {"segments": False})
    assert store.rollback().name == "0001"
    assert store.make_live("0002").name == live_name(store)
    store.publish(tiny_network(CONFIG, 3), manifest())
    assert store.former() is None
    with pytest.raises(ModelError, match="no earlier version"):
        store.rollback()
    with pytest.raises(ModelError, match=r"0001 was trained on images alone"):
        store.make_live("0001")
    assert live_name(store) == "0003"


def test_half_written_folders_are_no_versions(store: ModelStore) -> None:
    for name in ("0004", ".writing-x", "0005"):
        (store.folder / name).mkdir()
    (store.folder / "0005" / "model.safetensors").write_bytes(b"half")
    (store.folder / ".writing-x" / "manifest.json").write_text("{}", encoding="utf-8")
    (store.folder / "0004" / "manifest.json").write_text('{"half', encoding="utf-8")
    assert [version.name for version in store.versions()] == ["0001", "0002", "0003"]
    assert live_name(store) == "0003"
    assert store.publish(tiny_network(CONFIG), manifest()).name == "0006"


@pytest.mark.parametrize("place", [0.01, 0.5, 0.999])
def test_one_flipped_bit_in_the_weights_is_found(place: float, store: ModelStore) -> None:
    live = store.live()
    assert live is not None
    path = live.folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(bytes(content))
    network = tiny_network(CONFIG, 7)
    before = state_of(network)
    with pytest.raises(ModelError, match=r"model\.safetensors.*damaged"):
        load_weights(network, live)
    for name, value in state_of(network).items():
        np.testing.assert_array_equal(value, before[name])
    load_weights(network, store.rollback())


def test_weights_that_are_gone_or_of_another_network_are_named(store: ModelStore) -> None:
    live = store.live()
    assert live is not None
    other = VQSeg(tiny_config({"model.code_dim": 8}))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_weights(other, live)
    (live.folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_weights(tiny_network(CONFIG), live)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '"0001"', "{}", '{"live": null}', '{"live": "0009", "history": []}', '{"live": "0001"}', "\0"],
)
def test_with_a_damaged_pointer_the_newest_whole_version_is_live(text: str, store: ModelStore) -> None:
    assert store.pointer_fault() is None
    flip_bit(store.folder / "0003" / "manifest.json", 50)
    (store.folder / "live.json").write_text(text, encoding="utf-8")
    assert live_name(store) == find_version(store.folder).name == "0002"
    fault = store.pointer_fault()
    assert fault is not None
    assert "live.json is damaged" in fault
    assert "0002" in fault
    assert store.rollback().name == live_name(store) == "0001"
    assert store.pointer_fault() is None
    (store.folder / "live.json").write_text(text, encoding="utf-8")
    assert store.publish(tiny_network(CONFIG), manifest()).name == live_name(store) == "0004"
    assert store.rollback().name == "0002"


def test_with_a_damaged_pointer_what_segments_comes_first(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(tiny_network(CONFIG, 1), manifest())
    store.publish(tiny_network(CONFIG, 2), manifest() | {"segments": False})
    (tmp_path / "live.json").write_text("", encoding="utf-8")
    assert live_name(store) == "0001"


def test_without_any_whole_version_a_damaged_pointer_is_named(store: ModelStore) -> None:
    for version in store.versions():
        flip_bit(version.folder / "manifest.json", 50)
    (store.folder / "live.json").write_text("", encoding="utf-8")
    assert live_name(store) is None
    assert "no version is whole" in (store.pointer_fault() or "")
    with pytest.raises(ModelError, match="train one first"):
        find_version(store.folder)


@pytest.mark.parametrize("config", [{"model": {"channels": "x"}}, None])
def test_settings_of_another_version_are_named(config: Any, store: ModelStore) -> None:
    version = store.publish(tiny_network(CONFIG), {"config": config})
    with pytest.raises(ModelError, match=r"manifest\.json"):
        _ = find_version(version.folder).config


def test_no_flipped_bit_of_a_manifest_goes_unseen(store: ModelStore) -> None:
    live = store.live()
    assert live is not None
    path = live.folder / "manifest.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        flip_bit(path, bit)
        assert live_name(store) == "0002"
        with pytest.raises(ModelError, match=r"0003/manifest\.json"):
            find_version(store.folder)
    path.write_bytes(whole)
    assert live_name(store) == "0003"


def test_publishing_changes_nothing_in_the_network(tmp_path: Path) -> None:
    network = tiny_network(CONFIG).train()
    before = state_of(network)
    ModelStore(tmp_path).publish(network, manifest())
    assert network.training
    assert all(np.array_equal(value, before[name], equal_nan=True) for name, value in state_of(network).items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.is_grad_enabled()
