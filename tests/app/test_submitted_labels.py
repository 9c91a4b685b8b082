"""Labels on arrival: checked, mapped by name, kept whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests

STUDY = "case_02"


def stored(server: Any, tag: str = "final") -> bytes:
    return (server.studies / "labels" / tag / f"{STUDY}.nii.gz").read_bytes()


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def image_of(server: Any) -> nib.Nifti1Image:
    return nib.load(server.studies / f"{STUDY}.nii.gz")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shape", "shape (4, 4, 4)"),
        ("value", "value 3"),
        ("corrupt", "cannot be read"),
        ("empty", "cannot be read"),
        ("place", "elsewhere"),
        ("name", "must be a NIfTI file"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_and_the_former_one_stays(
    fresh: Any, tmp_path: Path, kind: str, words: str
) -> None:
    image = image_of(fresh)
    file = tmp_path / ("label.png" if kind == "name" else "label.nii.gz")
    if kind == "shape":
        write(file, np.ones((4, 4, 4), np.uint8), image.affine)
    elif kind == "value":
        write(file, np.full(image.shape, 3, np.uint8), image.affine)
    elif kind == "place":
        write(file, np.ones(image.shape, np.uint8), image.affine + np.diag([0, 0, 0, 0]) + shift(500))
    else:
        file.write_bytes(b"" if kind == "empty" else b"no image at all")
    before = stored(fresh)
    reply = fresh.put_label(STUDY, file)
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith(f"{STUDY}.nii.gz: ")
    assert words in reply.json()["detail"]
    assert stored(fresh) == before


def shift(millimetres: float) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[0, 3] = millimetres
    return affine


def test_a_label_comes_back_voxel_by_voxel(fresh: Any, tmp_path: Path) -> None:
    image = image_of(fresh)
    mask = np.random.default_rng(0).integers(0, 3, image.shape).astype(np.uint8)
    sent = write(tmp_path / "label.nii.gz", mask, image.affine)
    assert fresh.put_label(STUDY, sent, tag="review").json() == {"image": STUDY, "label": STUDY}
    reply = fresh.get("/datastore/label", label=STUDY, tag="review")
    back = tmp_path / "back.nii.gz"
    back.write_bytes(reply.content)
    np.testing.assert_array_equal(np.asarray(nib.load(back).dataobj), mask)
    np.testing.assert_allclose(nib.load(back).affine, image.affine, atol=1e-4)


def test_numbers_are_mapped_by_name(fresh: Any, tmp_path: Path) -> None:
    image = image_of(fresh)
    mask = np.zeros(image.shape, np.uint8)
    mask[:5], mask[5:8] = 1, 4
    sent = write(tmp_path / "label.nii.gz", mask, image.affine)
    names = [{"name": "background", "idx": 0}, {"name": "tumour", "idx": 1}, {"name": "lung", "idx": 4}]
    assert fresh.put_label(STUDY, sent, names, tag="byname").ok
    kept = np.asarray(nib.load(fresh.studies / "labels" / "byname" / f"{STUDY}.nii.gz").dataobj)
    np.testing.assert_array_equal(kept[:5], 2)
    np.testing.assert_array_equal(kept[5:8], 1)
    info = fresh.get("/datastore/label/info", label=STUDY, tag="byname").json()["label_info"]
    assert info == [{"name": "tumour", "idx": 2}, {"name": "lung", "idx": 1}]


def test_bare_voxels_as_ohif_sends_them(fresh: Any, tmp_path: Path) -> None:
    image = image_of(fresh)
    mask = np.random.default_rng(1).integers(0, 3, image.shape).astype(np.uint8)
    file = tmp_path / "label.bin"
    file.write_bytes(mask.tobytes(order="F"))
    assert fresh.put_label(STUDY, file, tag="bare").ok
    kept = np.asarray(nib.load(fresh.studies / "labels" / "bare" / f"{STUDY}.nii.gz").dataobj)
    np.testing.assert_array_equal(kept, mask)
    file.write_bytes(b"\0" * 10)
    reply = fresh.put_label(STUDY, file, tag="bare")
    assert reply.status_code == 422
    assert "10 voxels" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"image": "case_99"}, 404, "unknown image 'case_99'"),
        ({"tag": "../../x"}, 400, "label tag"),
        ({"params": "{"}, 400, "not valid JSON"),
        ({"params": '{"label_info": [{"name": "liver", "idx": 1}]}'}, 422, "unknown structure 'liver'; known: lung"),
        ({"params": '{"label_info": [1]}'}, 400, "label_info"),
        ({"params": '{"label_info": 5}'}, 400, "label_info"),
        ({"params": '{"label_info": [{"name": "lung", "idx": Infinity}]}'}, 400, "not valid JSON"),
        ({"params": '{"score": NaN}'}, 400, "not valid JSON"),
        ({"params": f'{{"deep": {"[" * 300}{"]" * 300}}}'}, 400, "not valid JSON"),
    ],
)
def test_wrong_request_to_keep_a_label(
    fresh: Any, tmp_path: Path, change: dict[str, str], status: int, words: str
) -> None:
    image = image_of(fresh)
    sent = write(tmp_path / "label.nii.gz", np.ones(image.shape, np.uint8), image.affine)
    query = {"image": STUDY, "params": "{}", "tag": "wrong", **change}
    form = {"params": (None, query.pop("params")), "label": (sent.name, sent.read_bytes())}
    reply = requests.put(f"{fresh.url}/datastore/label", params=query, files=form, timeout=60)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["detail"]
    assert not (fresh.studies / "labels" / "wrong").exists()


def test_images_are_checked_on_arrival(fresh: Any, tmp_path: Path) -> None:
    good = fresh.studies / f"{STUDY}.nii.gz"
    cases = [
        ("added", b"no image", 422, "added: it cannot be read"),
        ("../added", good.read_bytes(), 400, "image id"),
        (STUDY, good.read_bytes(), 409, "there already"),
    ]
    for name, content, status, words in cases:
        form = {"file": ("sent.nii.gz", content)}
        reply = requests.put(f"{fresh.url}/datastore/image", params={"image": name}, files=form, timeout=60)
        assert reply.status_code == status, reply.text
        assert words in reply.json()["detail"]
    assert not list(fresh.studies.parent.rglob("added*"))


@pytest.mark.parametrize("info", ["{", "[1]", '{"score": NaN}', '{"score": 1e999}', '{"name": "\\ud800"}'])
def test_what_is_kept_beside_images_and_labels_must_be_json(fresh: Any, info: str) -> None:
    for path, query, field in (
        ("image/info", {"image": STUDY}, "info"),
        ("label/info", {"label": STUDY, "tag": "final"}, "info"),
        ("updatelabelinfo", {"label": STUDY, "tag": "final"}, "params"),
    ):
        form = {field: (None, info)}
        reply = requests.put(f"{fresh.url}/datastore/{path}", params=query, files=form, timeout=60)
        assert reply.status_code == 400, reply.text
        assert reply.json()["detail"].startswith("info: ")
        form = {field: (None, '{"note": "seen"}')}
        assert requests.put(f"{fresh.url}/datastore/{path}", params=query, files=form, timeout=60).ok
    assert fresh.get("/datastore/", output="all").ok
