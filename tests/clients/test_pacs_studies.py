"""The PACS as a datastore: real Orthanc, labels that go there as DICOM SEG and come back by name."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from answers import voxel_counts
from builders import slice_file, write_dicom
from pydicom.uid import generate_uid
from servers import free_port

from vqseg.data.reading import read_grid, read_image

BY_VALUE = {"tumour": 1, "lung": 2}  # not in alphabetical order


@pytest.fixture
def studies(pacs: Any, tmp_path: Path, app_module: Any) -> Callable[..., Any]:
    """A datastore of its own, with an empty cache."""
    made = iter(range(100))

    def make(
        labels: Mapping[str, int] = BY_VALUE,
        url: str = pacs.dicomweb,
        gigabytes: float = 1.0,
        memory_gib: float | None = None,
    ) -> Any:
        label_set = app_module("labels").LabelSet(labels, None)
        client = app_module("pacs").PACS(url)
        folder = tmp_path / f"cache{next(made)}"
        memory = app_module("memory_guard").MemoryGuard(memory_gib)
        return app_module("pacs_datastore").PACSStudies(client, folder, gigabytes * 1e9, label_set, memory)

    yield make
    pacs.delete("SEG")


def phantom_mask(pacs: Any, name: str) -> np.ndarray:
    """The phantom's mask with the values of `BY_VALUE`: there 1 is the lung and 2 the tumour."""
    return np.array([0, 2, 1], np.uint8)[pacs.masks[name]]


def submit(store: Any, image: str, mask: np.ndarray, names: list[tuple[str, int]], **info: Any) -> None:
    """As OHIF does: bare voxels, x fastest, with names and numbers."""
    file = Path(store._folder) / "label.bin"
    file.write_bytes(mask.tobytes(order="F"))
    store.save_label(image, str(file), "final", {"label_info": [{"name": n, "idx": v} for n, v in names], **info})


def read(store: Any, image: str) -> np.ndarray:
    return np.asarray(nib.load(store.get_label_uri(image, "final")).dataobj)


@pytest.mark.parametrize("name", ["phantom_0", "phantom_1", "phantom_2"])
def test_an_image_is_what_the_phantom_was(pacs: Any, studies: Any, name: str) -> None:
    store = studies()
    volume = read_image(Path(store.get_image_uri(pacs.series[name])))
    assert volume.grid.shape == pacs.masks[name].shape
    inside = volume.array[volume.grid.to_ras(pacs.masks[name]) == 1]
    assert inside.mean() < -500  # lung


@pytest.mark.parametrize("name", ["phantom_0", "phantom_1", "phantom_2"])
def test_a_label_comes_back_voxel_by_voxel_into_an_empty_cache(pacs: Any, studies: Any, name: str) -> None:
    image, mask = pacs.series[name], phantom_mask(pacs, name)
    submit(studies(), image, mask, [("tumour", 1), ("lung", 2)])
    assert np.array_equal(read(studies(), image), mask)


def test_numbers_of_the_client_are_mapped_by_name(pacs: Any, studies: Any) -> None:
    """OHIF numbers alphabetically: lung 1, tumour 2, whatever the label set says."""
    image = pacs.series["phantom_0"]
    submit(studies(), image, pacs.masks["phantom_0"], [("lung", 1), ("tumour", 2)])
    assert np.array_equal(read(studies(), image), phantom_mask(pacs, "phantom_0"))
    # Another label set reads the same structures with its own numbers.
    assert np.array_equal(read(studies({"lung": 1, "heart": 2, "tumour": 3}), image) == 3, pacs.masks["phantom_0"] == 2)


def test_the_segmentation_in_the_pacs_says_who_and_what(pacs: Any, studies: Any) -> None:
    mask = phantom_mask(pacs, "phantom_0")
    names = [("tumour", 1), ("lung", 2)]
    submit(studies(), pacs.series["phantom_0"], mask, names, client_id="Dr. Who", model_version="0007")
    (stored,) = pacs.instances("SEG")
    assert [(segment.SegmentNumber, segment.SegmentLabel) for segment in stored.SegmentSequence] == [
        (1, "tumour"),
        (2, "lung"),
    ]
    assert voxel_counts(stored) == {"tumour": int((mask == 1).sum()), "lung": int((mask == 2).sum())}
    assert str(stored.ContentCreatorName).startswith("Dr. Who")
    assert "0007" in str(stored.SegmentSequence[0])
    assert stored.SegmentationType == "BINARY"


def test_every_segmentation_is_a_version_and_can_be_sent_again(pacs: Any, studies: Any, tmp_path: Path) -> None:
    store, image, mask = studies(), pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0")
    names = [("tumour", 1), ("lung", 2)]
    submit(store, image, mask, names, client_id="Dr. First", model_version="0007")
    submit(store, image, np.where(mask == 2, 2, 0).astype(np.uint8), names, client_id="Dr. Second")
    first, second = store.label_versions(image)
    assert [(one.tag, one.model_version) for one in (first, second)] == [("final", "0007"), ("final", None)]
    assert ("First" in (first.user or ""), "Second" in (second.user or "")) == (True, True)
    assert [entry["name"] for entry in first.label_info] == ["tumour", "lung"]
    assert not (read(store, image) == 1).any()
    store.restore_label(image, first.version, "Dr. Third")
    assert np.array_equal(read(store, image), mask)
    *former, last = store.label_versions(image)
    assert (former, last.model_version) == ([first, second], "0007")
    assert pydicom.dcmread(store.label_version_file(image, second.version)).SeriesInstanceUID == second.version


def test_a_label_of_a_clock_that_was_ahead_is_no_longer_the_newest(pacs: Any, studies: Any) -> None:
    store, image, mask = studies(), pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0")
    names = [("tumour", 1), ("lung", 2)]
    submit(store, image, mask, names)
    (ahead,) = pacs.instances("SEG")
    ahead.SeriesInstanceUID, ahead.SOPInstanceUID = generate_uid(), generate_uid()
    ahead.file_meta.MediaStorageSOPInstanceUID = ahead.SOPInstanceUID
    ahead.ContentDate, ahead.ContentTime = "20991231", "235959.5"
    store._pacs.store(ahead)
    store.refresh()
    for number in range(3):
        now = np.roll(mask, number + 1, axis=0)
        submit(store, image, now, names)
        assert np.array_equal(read(store, image), now)
    assert len(store.label_versions(image)) == 5


def test_labels_of_other_tags_are_versions_on_this_machine(pacs: Any, studies: Any, tmp_path: Path) -> None:
    store, image, mask = studies(), pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0")
    file = tmp_path / "label.bin"
    for voxels in (mask, np.roll(mask, 1, axis=0)):
        file.write_bytes(voxels.tobytes(order="F"))
        store.save_label(image, str(file), "review", {"user": "reader"})
    assert [(one.version, one.tag, one.user) for one in store.label_versions(image)] == [
        ("0001", "review", "reader"),
        ("0002", "review", "reader"),
    ]
    kept = nib.load(store.label_version_file(image, "0001"))
    assert np.array_equal(np.asarray(kept.dataobj), mask)
    newest = store.label_version_file(image, "0002")
    assert Path(store.get_label_uri(image, "review")).read_bytes() == newest.read_bytes()


def test_a_structure_that_is_not_in_the_mask_is_not_stored(pacs: Any, studies: Any) -> None:
    """Slicer lists empty segments too."""
    only_lung = np.where(phantom_mask(pacs, "phantom_0") == 2, 2, 0).astype(np.uint8)
    submit(studies(), pacs.series["phantom_0"], only_lung, [("tumour", 1), ("lung", 2)])
    (stored,) = pacs.instances("SEG")
    assert [segment.SegmentLabel for segment in stored.SegmentSequence] == ["lung"]


def test_a_saved_label_counts_at_once_and_images_are_counted(pacs: Any, studies: Any) -> None:
    store = studies()
    image, mask = pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0")
    assert store.status() == {"total": 6, "completed": 0, "label_tags": {"final": 0}}
    for _ in range(2):
        submit(store, image, mask, [("tumour", 1), ("lung", 2)])
        assert store.status()["completed"] == 1
    assert len(pacs.instances("SEG")) == 2
    assert store.get_labeled_images() == [image]
    assert image not in store.get_unlabeled_images()


def test_the_newest_label_counts(pacs: Any, studies: Any) -> None:
    image, mask = pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0")
    store = studies()
    submit(store, image, mask, [("tumour", 1), ("lung", 2)])
    smaller = mask.copy()
    smaller[: len(smaller) // 2] = 0
    submit(store, image, smaller, [("tumour", 1), ("lung", 2)])
    assert np.array_equal(read(store, image), smaller)
    assert np.array_equal(read(studies(), image), smaller)


def test_names_come_from_the_pacs_when_nobody_gave_them(pacs: Any, studies: Any) -> None:
    submit(studies(), pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0"), [("tumour", 1), ("lung", 2)])
    store = studies({})
    assert store._label_set.resolve(store) == {"tumour": 1, "lung": 2}
    assert np.array_equal(read(store, pacs.series["phantom_0"]), phantom_mask(pacs, "phantom_0"))


def test_a_label_with_an_unknown_structure_stays_a_segmentation(pacs: Any, studies: Any) -> None:
    """The training then names it; nothing else fails."""
    submit(studies(), pacs.series["phantom_0"], phantom_mask(pacs, "phantom_0"), [("tumour", 1), ("lung", 2)])
    assert studies({"liver": 1}).get_label_uri(pacs.series["phantom_0"], "final").endswith(".dcm")


@pytest.mark.parametrize("label", [None, "lung"], ids=["nameless", "one name twice"])
def test_a_foreign_label_without_usable_names_stops_nobody_who_gave_no_names(
    pacs: Any, studies: Any, label: str | None
) -> None:
    image = pacs.series["phantom_0"]
    submit(studies(), image, phantom_mask(pacs, "phantom_0"), [("tumour", 1), ("lung", 2)])
    (foreign,) = pacs.instances("SEG")
    pacs.delete("SEG")
    for segment in foreign.SegmentSequence:
        del segment.SegmentLabel
        if label:
            segment.SegmentLabel = label
    content = io.BytesIO()
    foreign.save_as(content)
    assert requests.post(f"{pacs.url}/instances", data=content.getvalue(), timeout=30).ok
    store = studies({})
    assert store.get_labeled_images() == [image]
    assert set(store._label_set.resolve(store)) <= {"lung"}
    assert Path(store.get_label_uri(image, "final")).exists()


def test_wrong_masks_are_refused_in_words_and_nothing_is_stored(pacs: Any, studies: Any, app_module: Any) -> None:
    store, image = studies(), pacs.series["phantom_0"]
    mask = phantom_mask(pacs, "phantom_0")
    both = [("tumour", 1), ("lung", 2)]
    for wrong, names, words in (
        (mask[1:], both, "voxels"),
        (np.zeros_like(mask), both, "empty"),
        (mask, [("tumour", 1), ("liver", 2)], "unknown structure 'liver'; known: tumour, lung"),
        (mask, [("tumour", 1)], "value 2"),
    ):
        with pytest.raises(app_module("pacs").VQSegError, match=words):
            submit(store, image, wrong, names)
    assert pacs.instances("SEG") == []


def test_a_pacs_that_is_down_is_said_in_words(studies: Any, app_module: Any) -> None:
    store = studies(url=f"http://127.0.0.1:{free_port()}/dicom-web")
    with pytest.raises(app_module("pacs").PACSError, match="does not answer"):
        store.list_images()


def test_a_pacs_that_answers_nonsense_is_said_in_words(pacs: Any, studies: Any, app_module: Any) -> None:
    store = studies(url=f"{pacs.url}/system?")
    with pytest.raises(app_module("pacs").PACSError, match="PACS"):
        store.list_images()


def test_a_mask_the_pacs_does_not_take_is_kept_aside(
    pacs: Any, studies: Any, app_module: Any, monkeypatch: Any
) -> None:
    store, image = studies(), pacs.series["phantom_0"]
    mask = phantom_mask(pacs, "phantom_0")
    store.get_image_uri(image)
    error = app_module("pacs").PACSError("the PACS does not answer")
    monkeypatch.setattr(store._pacs, "store", lambda instance: (_ for _ in ()).throw(error))
    with pytest.raises(app_module("pacs").PACSError, match=r"unsent/.*\.nii\.gz"):
        submit(store, image, mask, [("tumour", 1), ("lung", 2)])
    (kept,) = (store._folder / "unsent").iterdir()
    assert np.array_equal(np.asarray(nib.load(kept).dataobj), mask)
    assert np.allclose(read_grid(kept).affine, read_grid(Path(store.get_image_uri(image))).affine, atol=1e-4)


def test_an_image_is_fetched_once(pacs: Any, studies: Any, monkeypatch: Any) -> None:
    store, image = studies(), pacs.series["phantom_1"]
    assert store.image_on_disk(image) is None
    first = Path(store.get_image_uri(image))
    assert store.image_on_disk(image) == first
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(store._pacs, "fetch", lambda *_: pytest.fail("fetched again"))
    assert Path(store.get_image_uri(image)) == first
    assert first.stat().st_mtime_ns == written


def test_the_cache_keeps_to_its_bound(pacs: Any, studies: Any) -> None:
    one = sum(f.stat().st_size for f in Path(studies().get_image_uri(pacs.series["phantom_0"])).parent.rglob("*.*"))
    store = studies(gigabytes=2.5 * one / 1e9)
    uris = [Path(store.get_image_uri(image)) for image in sorted(pacs.series.values())]
    left = [uri for uri in uris if uri.exists()]
    assert 1 <= len(left) <= 3
    assert uris[-1] in left
    assert Path(store.get_image_uri(sorted(pacs.series.values())[0])).exists()


def test_training_gets_the_labelled_images_and_what_fits(pacs: Any, studies: Any, app_module: Any) -> None:
    labelled = pacs.series["phantom_5"]
    submit(studies(), labelled, phantom_mask(pacs, "phantom_5"), [("tumour", 1), ("lung", 2)])
    pool_of = app_module("training").pool_of
    whole = pool_of(studies())
    assert {study.id for study in whole.studies} == set(pacs.series.values())
    assert [study.id for study in whole.studies if study.label] == [labelled]
    assert whole.left_out == {}
    one = Path(studies().get_image_uri(labelled)).parent
    size = sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
    some = pool_of(studies(gigabytes=2.5 * size / 1e9))
    assert some.studies[0].id == labelled
    assert 1 < len(some.studies) < 6
    assert all(study.image.exists() for study in some.studies)
    assert {study.id for study in some.studies} | set(some.left_out) == set(pacs.series.values())
    assert all("pacs_cache_gb" in reason for reason in some.left_out.values())


def test_a_series_that_is_no_volume_is_left_out_by_name(
    pacs: Any, studies: Any, app_module: Any, orthanc: Any, tmp_path: Path
) -> None:
    write_dicom(tmp_path / "gap", np.zeros((12, 12, 6), np.int16), (1, 0, 0), (0, 1, 0), (2, 2, 2))
    gap = str(pydicom.dcmread(next((tmp_path / "gap").iterdir())).SeriesInstanceUID)
    slice_file(tmp_path / "gap", 3).unlink()
    port = int(pacs.url.rsplit(":", 1)[1])
    assert orthanc.load(tmp_path / "gap", port) == 5
    try:
        store = studies()
        pool = app_module("training").pool_of(store)
        assert set(pool.left_out) == {gap}
        assert "2 mm apart, but 4 mm" in pool.left_out[gap]
        with pytest.raises(app_module("pacs").VQSegError, match="4 mm"):
            store.get_image_uri(gap)
    finally:
        pacs.delete_series(gap)


def test_a_series_too_large_for_the_memory_is_left_out_before_its_voxels_are_read(
    pacs: Any, studies: Any, app_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module("pacs_cache"), "read_voxels", lambda _: pytest.fail("its voxels are read"))
    store, image = studies(memory_gib=1e-4), pacs.series["phantom_0"]
    with pytest.raises(app_module("errors_over_rest").TooLargeError, match=f"series {image}: reading it takes"):
        store.get_image_uri(image)
    pool = app_module("training").pool_of(store)
    assert set(pool.left_out) == set(pacs.series.values())


def test_a_series_that_vanished_is_said_in_words(pacs: Any, studies: Any, app_module: Any) -> None:
    store = studies()
    listed = store._image(pacs.series["phantom_0"])
    gone = dataclasses.replace(listed, uid=f"{listed.uid[:-1]}{(int(listed.uid[-1]) + 1) % 10}")
    with pytest.raises(app_module("pacs").PACSError, match=gone.uid):
        store._cache.image(gone)
    assert not (store._folder / "images" / gone.uid).exists()
