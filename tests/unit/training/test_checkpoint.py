"""At any moment there is a whole checkpoint, and what is damaged is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqseg.training.checkpoint as checkpoint_module
from vqseg.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint_of(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    student, teacher = (
        {
            "weight": torch.rand(3, 4, generator=generator),
            "count": torch.tensor(step),
            "nan": torch.tensor(float("nan")),
        }
        for _ in range(2)
    )
    state = {"optimizer": {"state": {0: {"m": torch.rand(3, generator=generator)}}}, "config": {"a": [1, None, "x"]}}
    return Checkpoint(step, student, teacher, state)


def assert_equal(found: Checkpoint | None, step: int) -> None:
    expected = checkpoint_of(step)
    assert found is not None
    assert found.step == step
    for part in ("student", "teacher"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.state["optimizer"]["state"][0]["m"], expected.state["optimizer"]["state"][0]["m"])
    assert found.state["config"] == expected.state["config"]
    assert set(found.state) == set(expected.state)


def test_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere") is None
    save_checkpoint(tmp_path / "c", checkpoint_of(5))
    assert_equal(load_checkpoint(tmp_path / "c"), 5)


def test_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, checkpoint_of(step))
        assert_equal(load_checkpoint(tmp_path), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000015", "00000020", "newest.json"]


@pytest.mark.parametrize("file", ["student.safetensors", "teacher.safetensors", "state.pt", "sums.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damaged_newest_falls_back_to_the_one_before(file: str, damage: str, tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint_of(step))
    path = tmp_path / "00000010" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"flip": bytes(content), "truncate": path.read_bytes()[:-7], "empty": b""}
    path.unlink()
    if damage in changed:
        path.write_bytes(changed[damage])
    assert_equal(load_checkpoint(tmp_path), 5)
    # And the training goes on from there.
    save_checkpoint(tmp_path, checkpoint_of(10))
    assert_equal(load_checkpoint(tmp_path), 10)


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_sums_is_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("c")
    for step in (5, 10):
        save_checkpoint(folder, checkpoint_of(step))
    path = folder / "00000010" / "sums.json"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    found = load_checkpoint(folder)
    assert found is not None
    assert_equal(found, found.step)


@pytest.mark.parametrize("text", ["", "[3]", '["00000099"]'])
def test_damaged_pointer_finds_the_checkpoints_all_the_same(text: str, tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, checkpoint_of(step))
    (tmp_path / "newest.json").write_text(text, encoding="utf-8")
    assert_equal(load_checkpoint(tmp_path), 10)


def test_nothing_whole_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_of(5))
    (tmp_path / "00000005" / "state.pt").unlink()
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("before", [[5], [5, 10]], ids=str)
@pytest.mark.parametrize("call", range(5))
def test_a_crash_between_any_two_writes_leaves_the_newest(
    before: list[int], call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writes are: student, teacher, state, sums, pointer."""
    for step in before:
        save_checkpoint(tmp_path, checkpoint_of(step))
    calls = 0

    def counted(original: object) -> object:
        def write(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)  # type: ignore[operator]

        return write

    with monkeypatch.context() as patch:
        for name in ("save", "write_json"):
            patch.setattr(checkpoint_module, name, counted(getattr(checkpoint_module, name)))
        patch.setattr(checkpoint_module.torch, "save", counted(torch.save))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint_of(15))
    assert_equal(load_checkpoint(tmp_path), before[-1])
    save_checkpoint(tmp_path, checkpoint_of(15))
    assert_equal(load_checkpoint(tmp_path), 15)


def test_state_is_never_unpickled_into_objects(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_of(5))
    torch.load(tmp_path / "00000005" / "state.pt", weights_only=True)
    foreign = Checkpoint(10, {}, {}, {"path": Path("x")})
    save_checkpoint(tmp_path, foreign)
    assert_equal(load_checkpoint(tmp_path), 5)
