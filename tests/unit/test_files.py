"""A reader sees the whole former file or the whole new one, and a failed write leaves nothing behind."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.files import new_file, new_folder, read_json, remove_leftovers, sha256, write_json


def test_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "file"
    for content in ("one", "two"):
        before = path.read_text(encoding="utf-8") if path.exists() else None
        with new_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
            assert (path.read_text(encoding="utf-8") if path.exists() else None) == before
        assert path.read_text(encoding="utf-8") == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, ValueError])
def test_failed_file_leaves_the_former_one(cause: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("former", encoding="utf-8")
    with pytest.raises(cause), new_file(path) as temporary:  # noqa: PT012 - the block is what fails
        temporary.write_text("half", encoding="utf-8")
        raise cause
    assert {found.name: found.read_text(encoding="utf-8") for found in tmp_path.iterdir()} == {"file": "former"}


def test_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("a", encoding="utf-8")
        assert not (tmp_path / "new").exists()
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "a"}
    with pytest.raises(ValueError, match="half"), new_folder(tmp_path / "other") as temporary:  # noqa: PT012
        (temporary / "a").write_text("a", encoding="utf-8")
        raise ValueError("half")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def names_synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with what is brought to the disk, and in which order; `replace` stands where a name appears."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return done


def test_a_folder_that_appears_is_on_the_disk_with_all_that_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power loss leaves a pointer to files that are not there."""
    done = names_synced(monkeypatch)
    with new_folder(tmp_path / "deep" / "store" / "new") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("a", encoding="utf-8")
        written = [str(path) for path in (temporary / "inner" / "a", temporary / "inner", temporary)]
    before, after = done[: done.index("replace")], done[done.index("replace") :]
    assert set(written) <= set(before)
    assert {str(tmp_path), str(tmp_path / "deep")} <= set(before)  # they name what was made in them
    assert str(tmp_path / "deep" / "store") in after


def test_a_file_that_appears_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = names_synced(monkeypatch)
    with new_file(tmp_path / "deep" / "file") as temporary:
        temporary.write_text("a", encoding="utf-8")
    assert done[-3:] == [str(temporary), "replace", str(tmp_path / "deep")]
    assert str(tmp_path) in done


def test_folder_never_replaces_one_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "kept").touch()
    with pytest.raises(OSError, match="new"), new_folder(tmp_path / "new") as temporary:
        (temporary / "a").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]


def test_what_others_may_read_does_not_depend_on_how_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "file").touch()
    write_json(tmp_path / "new.json", 1)
    assert (tmp_path / "new.json").stat().st_mode == (tmp_path / "file").stat().st_mode


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    killed = new_folder(tmp_path / "new")
    (killed.__enter__() / "a").touch()  # and never left, as after SIGKILL
    (tmp_path / "kept").mkdir()
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)


@settings(max_examples=20, deadline=None)
@given(json_values)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_json(path, content)
    assert read_json(path) == content


def test_json_that_is_none_or_not_valid_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "nowhere") is None
    assert read_json(tmp_path) is None
    for content in (b"", b"{", b"\xff\xfe", b"nonsense"):
        (tmp_path / "file").write_bytes(content)
        assert read_json(tmp_path / "file") is None


def test_json_refuses_what_other_readers_do_not_know(tmp_path: Path) -> None:
    write_json(tmp_path / "file", 1)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "file", {"dice": value})
    assert read_json(tmp_path / "file") == 1


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
