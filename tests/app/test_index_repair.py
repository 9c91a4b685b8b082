"""A broken index of the studies is set aside and made anew: at start, while the server runs, whatever broke it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from workplaces import Workplace

NAMES = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
BREAK: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "zeros after a power loss": lambda whole: b"\0" * len(whole),
    "truncated": lambda whole: whole[: len(whole) // 2],
    "truncated at the end": lambda whole: whole[:-2],
    "garbage": lambda whole: np.random.default_rng(0).bytes(len(whole)),
    "another JSON": lambda whole: b'{"images": []}',
    "NaN": lambda whole: whole.replace(b'"ts":', b'"score":NaN,"large":1e999,"ts":', 1),
    "nested without end": lambda whole: b"[" * 100_000,
}


@pytest.fixture
def place(place: Workplace) -> Workplace:
    """Two studies, one labelled and one with a note."""
    place.add(one=np.zeros((4, 4, 4)), two=np.zeros((4, 4, 4)))
    place.label("one", np.ones((4, 4, 4)))
    place.datastore.update_image_info("two", {"note": "kept"})
    return place


def index_of(place: Workplace) -> Path:
    return place.folder / "datastore_v2.json"


def opened(place: Workplace) -> Any:
    return place.module("datastore").StudiesFolder(str(place.folder), place.datastore.label_set)


def broken(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("datastore_v2.broken-*Z.json"))]


@pytest.mark.parametrize("kind", BREAK)
@pytest.mark.parametrize("running", [False, True], ids=["at start", "while running"])
def test_no_image_label_or_name_is_lost(
    place: Workplace, kind: str, running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    index = index_of(place)
    content = BREAK[kind](index.read_bytes())
    index.write_bytes(content)
    with caplog.at_level(logging.ERROR):
        store = place.datastore if running else opened(place)
        assert sorted(store.list_images()) == ["one", "two"]
    assert store.get_labeled_images() == ["one"]
    assert store.get_label_info("one", "final")["label_info"] == NAMES
    assert broken(place.folder) == [content]
    (told,) = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert "datastore_v2.broken-" in told
    assert store.get_image_info("two").get("note") == ("kept" if running or kind == "NaN" else None)
    # What stands there now is valid for everybody, and a label can be submitted.
    json.loads(index.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    place.label("two", np.ones((4, 4, 4)))
    assert sorted(opened(place).get_labeled_images()) == ["one", "two"]
    assert len(broken(place.folder)) == 1


def test_names_are_recovered_only_for_the_very_file_that_was_submitted(place: Workplace) -> None:
    final = place.folder / "labels" / "final" / "one.nii.gz"
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 2, np.uint8), np.eye(4)), final)
    index_of(place).write_bytes(b"{")
    assert "label_info" not in opened(place).get_label_info("one", "final")


def test_what_a_killed_process_left_half_written_is_removed_at_start(place: Workplace) -> None:
    folders = [place.folder, place.folder / "labels" / "final", place.folder / ".vqseg" / "label_versions"]
    for folder in folders:
        (folder / ".writing-x").mkdir()
        (folder / ".writing-x" / "half").write_bytes(b"half")
    opened(place)
    assert [path for folder in folders for path in folder.glob(".writing-*")] == []


def test_a_server_starts_on_half_an_index_and_survives_the_next(serve_app: Any, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    nib.save(image, studies / "one.nii.gz")
    index = studies / "datastore_v2.json"
    index.write_text('{"name": "new-dataset", "obj', encoding="utf-8")
    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), mask)
    with serve_app(studies, tmp_path, {"labels": "lung,tumour"}) as server:
        assert server.get("/datastore/").json()["total"] == 1
        assert server.put_label("one", mask, NAMES).ok
        index.write_bytes(b"\xff\xfe garbage")
        assert server.get("/datastore/").json()["completed"] == 1
        assert server.put_label("one", mask, NAMES).ok
        assert len(server.get("/vqseg/labels/one").json()["versions"]) == 2
        assert server.get("/datastore/label/info", label="one", tag="final").json()["label_info"] == NAMES
    assert len(broken(studies)) == 2
    assert "cannot be read" in (tmp_path / "server.log").read_text(encoding="utf-8")
