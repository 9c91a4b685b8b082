"""Every label that was submitted stays, byte by byte, with who, when and from which model."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from servers import ROOT, environment
from workplaces import Workplace

from vqseg.errors import DataError, VQSegError

STUDY = "case_01"
SUBMIT = """
import sys
from pathlib import Path
from vqseg_app.lib import datastore, labels
folder, mask, ready = sys.argv[1:]
store = datastore.StudiesFolder(folder, labels.LabelSet({"lung": 1, "tumour": 2}, None))
Path(ready).touch()
for turn in range(8):
    store.save_label("study", mask, "final", {"user": f"process-{turn}"})
"""
NAMES = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]


@pytest.fixture
def place(tmp_path: Path, app_module: Any) -> Workplace:
    made = Workplace(tmp_path, app_module)
    made.add(study=np.zeros((8, 8, 8)))
    return made


def mask_file(path: Path, voxels: Any) -> Path:
    nib.save(nib.Nifti1Image(np.asarray(voxels, np.uint8), np.eye(4)), path)
    return path


def random_mask(seed: int, shape: tuple[int, ...] = (8, 8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def live(place: Workplace) -> bytes:
    return (place.folder / "labels" / "final" / "study.nii.gz").read_bytes()


def test_each_submission_is_a_version_and_the_newest_is_what_is_live(place: Workplace) -> None:
    seen = []
    for seed in range(4):
        place.label("study", random_mask(seed))
        seen.append(live(place))
    versions = place.datastore.label_versions("study")
    assert [version.version for version in versions] == ["0001", "0002", "0003", "0004"]
    assert [place.datastore.label_version_file("study", one.version).read_bytes() for one in versions] == seen
    assert [version.sha256 for version in versions] == [hashlib.sha256(content).hexdigest() for content in seen]


def test_threads_and_processes_lose_nothing_of_each_other(place: Workplace, tmp_path: Path) -> None:
    masks = {"process": random_mask(10), **{f"thread{number}": random_mask(number) for number in range(3)}}
    files = {name: mask_file(tmp_path / f"{name}.nii.gz", voxels) for name, voxels in masks.items()}
    ready = tmp_path / "ready"
    other = subprocess.Popen(
        [sys.executable, "-c", SUBMIT, *map(str, (place.folder, files["process"], ready))],
        env={**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'lib'}"},
    )

    def submit(name: str) -> None:
        for turn in range(8):
            place.datastore.save_label("study", str(files[name]), "final", {"user": f"{name}-{turn}"})

    while not ready.exists():
        assert other.poll() is None
        time.sleep(0.01)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(submit, [name for name in masks if name != "process"]))
    assert other.wait(60) == 0
    versions = place.datastore.label_versions("study")
    assert [version.version for version in versions] == [f"{number:04d}" for number in range(1, 33)]
    users = [version.user or "" for version in versions]
    assert sorted(users) == sorted(f"{name}-{turn}" for name in masks for turn in range(8))
    for version, user in zip(versions, users, strict=True):
        kept = nib.load(place.datastore.label_version_file("study", version.version))
        np.testing.assert_array_equal(np.asarray(kept.dataobj), masks[user.split("-")[0]])
    assert live(place) == place.datastore.label_version_file("study", versions[-1].version).read_bytes()


def test_a_label_that_nobody_submitted_is_kept_before_it_is_replaced_or_removed(place: Workplace) -> None:
    final = place.folder / "labels" / "final" / "study.nii.gz"
    put = mask_file(final, random_mask(0)).read_bytes()
    place.datastore.refresh()
    place.label("study", random_mask(1))
    replaced = live(place)
    mask_file(final, random_mask(2))  # over the submitted one, which is a version already
    edited = live(place)
    place.datastore.remove_label("study", "final")
    assert not final.exists()
    versions = place.datastore.label_versions("study")
    kept = [place.datastore.label_version_file("study", version.version).read_bytes() for version in versions]
    assert kept == [put, replaced, edited]
    assert [(one.user, one.model_version) for one in versions[::2]] == [(None, None)] * 2


def test_what_was_removed_can_be_restored(place: Workplace) -> None:
    place.label("study", random_mask(0))
    first = live(place)
    place.label("study", random_mask(1))
    place.datastore.remove_label("study", "final")
    assert place.datastore.get_labeled_images() == []
    place.datastore.restore_label("study", "0001", "reviewer")
    np.testing.assert_array_equal(
        np.asarray(nib.load(place.datastore.get_label_uri("study", "final")).dataobj), random_mask(0)
    )
    *_, last = place.datastore.label_versions("study")
    assert (last.version, last.user, last.info["restored"]) == ("0003", "reviewer", "0001")
    assert place.datastore.label_version_file("study", "0001").read_bytes() == first


def test_versions_outlive_their_image(place: Workplace) -> None:
    place.label("study", random_mask(0))
    kept = live(place)
    place.datastore.remove_image("study")
    assert place.datastore.list_images() == []
    assert place.datastore.label_version_file("study", "0001").read_bytes() == kept
    with pytest.raises(VQSegError, match="unknown image 'study'"):
        place.datastore.restore_label("study", "0001", "reviewer")


def test_a_number_is_given_once(tmp_path: Path, app_module: Any) -> None:
    """A PACS has no lock around it as a folder of studies has."""
    versions = app_module("label_versions").LabelVersions(tmp_path / "versions")

    def keep(number: int) -> str:
        made = versions.keep("study", "review", lambda file: file.write_bytes(b"%d" % number), {"user": str(number)})
        return str(made.version)

    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(keep, range(40)))
    assert sorted(numbers) == [f"{number:04d}" for number in range(1, 41)]
    assert all(versions.file(one).read_bytes() == (one.user or "").encode() for one in versions.of("study"))
    # An image whose id looks like the version of another.
    versions.keep("study.0001", "review", lambda file: file.touch(), {})
    assert len(versions.of("study")) == 40


def test_a_refused_label_is_no_version(place: Workplace, tmp_path: Path) -> None:
    with pytest.raises(VQSegError):
        place.datastore.save_label("study", str(mask_file(tmp_path / "bad.nii.gz", np.full((8, 8, 8), 9))), "final", {})
    assert place.datastore.label_versions("study") == []


@pytest.mark.parametrize("image", ["", ".", "..", "../x", "a/b", "a\0b", "nobody"])
def test_ids_are_no_paths(place: Workplace, image: str) -> None:
    for ask in (
        place.datastore.label_versions,
        lambda one: place.datastore.label_version_file(one, "0001"),
        lambda one: place.datastore.restore_label(one, "0001", "x"),
    ):
        with pytest.raises(VQSegError, match="unknown"):
            ask(image)


def test_a_damaged_version_is_never_served_and_the_others_are(place: Workplace) -> None:
    for seed in range(3):
        place.label("study", random_mask(seed))
    mask = place.datastore.label_version_file("study", "0002")
    described = mask.with_name("study.0003.json")
    for file in (mask, described):
        file.chmod(0o644)
    mask.write_bytes(mask.read_bytes()[:-1])
    described.write_bytes(b"{")
    with pytest.raises(DataError, match="0002 of 'study' is damaged"):
        place.datastore.label_version_file("study", "0002")
    assert [version.version for version in place.datastore.label_versions("study")] == ["0001", "0002"]
    before = live(place)
    place.label("study", random_mask(4))
    # The label that was live is no longer told by any version, so it is kept once more.
    assert [version.version for version in place.datastore.label_versions("study")] == ["0001", "0002", "0004", "0005"]
    assert place.datastore.label_version_file("study", "0004").read_bytes() == before


def test_monai_label_takes_versions_for_nothing(place: Workplace) -> None:
    for seed in range(3):
        place.label("study", random_mask(seed))
    place.datastore.refresh()
    assert place.datastore.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
    assert [path.name for path in (place.folder / "labels" / "final").iterdir()] == ["study.nii.gz"]


def test_files_that_somebody_puts_there_are_still_seen(place: Workplace, tmp_path: Path) -> None:
    for folder in (place.folder, place.folder / "labels" / "final"):
        shutil.copy(mask_file(tmp_path / "put.nii.gz", random_mask(0)), folder / "put.nii.gz")
        end = time.monotonic() + 60
        seen = place.datastore.list_images if folder == place.folder else place.datastore.get_labeled_images
        while "put" not in seen():
            assert time.monotonic() < end
            time.sleep(0.05)


def test_our_own_files_are_not_looked_for(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    looked: list[None] = []
    store, heed = place.datastore, place.datastore._handler.on_created

    def hear(event: Any) -> None:
        heed(event)
        told.put(Path(event.src_path).name)

    monkeypatch.setattr(store._handler, "on_created", hear)
    monkeypatch.setattr(store, "_reconcile_datastore", lambda: looked.append(None))
    place.label("study", random_mask(0))
    store.update_image_info("study", {"note": "kept"})
    heard = [told.get(timeout=60) for _ in range(3)]
    assert sorted(heard) == ["datastore_v2.json", "datastore_v2.json", "study.nii.gz"]
    assert looked == []


def test_whoever_reads_does_not_wait_for_the_disk_of_whoever_writes(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, at_the_disk, go_on = sys.modules["vqseg.files"], threading.Event(), threading.Event()

    def stuck(path: Path) -> None:
        at_the_disk.set()
        assert go_on.wait(30)

    monkeypatch.setattr(files, "_sync", stuck)
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(place.datastore.update_image_info, "study", {"note": "kept"})
        assert at_the_disk.wait(60)
        reading = threads.submit(place.datastore.status)
        assert reading.result(10) == {"total": 1, "completed": 0, "label_tags": {}}
        assert not writing.done()
        go_on.set()
        writing.result(10)
    assert place.datastore.get_image_info("study")["note"] == "kept"


def test_a_proposal_is_remembered_by_the_name_of_the_client_first(app_module: Any) -> None:
    proposals = app_module("proposals").Proposals()
    proposals.note("study", "0001", "reader", "10.0.0.1")
    proposals.note("study", "0002", None, "10.0.0.1")
    assert proposals.version("study", "reader", "10.0.0.1") == "0001"
    assert proposals.version("study", "another", "10.0.0.1") == "0002"
    assert proposals.version("study", "another", "10.0.0.2") is None
    assert proposals.version("other", "reader", "10.0.0.1") is None


@pytest.mark.parametrize("seed", range(20))
def test_proposals_outlive_their_server_up_to_the_line_it_wrote_when_it_was_killed(
    app_module: Any, tmp_path: Path, seed: int
) -> None:
    kind, draw, file = app_module("proposals").Proposals, random.Random(seed), tmp_path / "run" / "proposals.jsonl"
    images, clients = ["a", "b ä"], ["Dr. \u2028 One", "10.0.0.1", None]
    notes = [(draw.choice(images), f"{number:04d}", *draw.sample(clients, 2)) for number in range(12)]
    kept = kind(file)
    for note in notes:
        kept.note(*note)
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randrange(len(whole) + 1)])
    known = kind()
    for note in notes[: file.read_bytes().count(b"]")]:
        known.note(*note)
    asked = [(image, client) for image in images for client in clients]
    for again in (kind(file), kind(file)):
        found = [again.version(*question) for question in asked]
        assert found == [known.version(*question) for question in asked]


def put(server: Any, file: Path, **params: Any) -> requests.Response:
    form = {"params": (None, json.dumps(params)), "label": (file.name, file.read_bytes())}
    return requests.put(
        f"{server.url}/datastore/label", params={"image": STUDY, "tag": "review"}, files=form, timeout=60
    )


def test_versions_over_rest(trained: Any, tmp_path: Path) -> None:
    """The mask is proposed, corrected, submitted, replaced, removed, and back again."""
    image = nib.load(trained.studies / f"{STUDY}.nii.gz")
    before = trained.get(f"/vqseg/labels/{STUDY}").json()["versions"]
    began = datetime.now(timezone.utc).isoformat()
    assert trained.infer(STUDY, {"client_id": "reader"}).ok
    live_version = trained.get("/vqseg/ranking").json()["model_version"]
    sent = []
    for seed in range(2):
        file = tmp_path / "label.nii.gz"
        nib.save(nib.Nifti1Image(random_mask(seed, image.shape), image.affine), file)
        assert put(trained, file, client_id="reader", model="vqseg", label_info=NAMES).ok
        sent.append((trained.studies / "labels" / "review" / f"{STUDY}.nii.gz").read_bytes())
    assert requests.delete(f"{trained.url}/datastore/label", params={"id": STUDY, "tag": "review"}, timeout=60).ok
    listed = trained.get(f"/vqseg/labels/{STUDY}").json()
    versions = listed["versions"][len(before) :]
    assert listed["image"] == STUDY
    for version, content in zip(versions, sent, strict=True):
        assert trained.get(f"/vqseg/labels/{STUDY}/{version['version']}").content == content
        assert version["sha256"] == hashlib.sha256(content).hexdigest()
        assert (version["tag"], version["user"], version["info"]["client_id"]) == ("review", "admin", "reader")
        assert version["model_version"] == live_version
        assert began < version["time"].replace("Z", "+00:00") < datetime.now(timezone.utc).isoformat()
    restored = trained.post(f"/vqseg/labels/{STUDY}/{versions[0]['version']}/restore")
    assert restored.json() == {"image": STUDY, "label": STUDY}
    final = nib.load(trained.studies / "labels" / "final" / f"{STUDY}.nii.gz")
    np.testing.assert_array_equal(np.asarray(final.dataobj), random_mask(0, image.shape))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nobody", 404),
        ("nobody/0001", 404),
        (f"{STUDY}/9999", 404),
        (f"{STUDY}/x", 422),
        (f"{STUDY}/%2e%2e", 404),
        ("%2e%2e", 404),
        ("..%2f..%2fx/0001", 404),
        (f"{STUDY}/..%2f..%2fx", 404),
    ],
)
def test_versions_that_are_not_there(fresh: Any, path: str, status: int) -> None:
    assert requests.get(f"{fresh.url}/vqseg/labels/{path}", timeout=60).status_code == status
    restore = requests.post(f"{fresh.url}/vqseg/labels/{path}/restore", timeout=60).status_code
    assert restore == status if path.count("/") == 1 else restore in (404, 405)
