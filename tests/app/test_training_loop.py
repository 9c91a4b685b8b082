"""The main job over REST: train on labelled and unlabelled studies, infer, choose the next study."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import requests
from requests_toolbelt import MultipartDecoder

from vqseg.config import Active
from vqseg.data.reading import read_image
from vqseg.inference.predictor import Predictor

OBLIQUE = "case_07"
POOL = ("case_05", "case_06", "case_07", "case_08", "case_09")


def expected_mask(server: Any, image: str) -> tuple[np.ndarray, np.ndarray]:
    """The library's own mask in the axis order of the file, and the file's affine."""
    volume = read_image(server.studies / f"{image}.nii.gz")
    mask = Predictor.load(server.run, "cpu").predict(volume).mask
    return volume.grid.restore(mask), volume.grid.affine


def parts(reply: Any) -> tuple[dict[str, Any], bytes]:
    """`params` and the file of a multipart reply, as Slicer takes it apart."""
    params, image = MultipartDecoder.from_response(reply).parts
    return json.loads(params.content), image.content


def test_status_counts_labelled_and_unlabelled_studies(trained: Any) -> None:
    stats = trained.stats()
    assert stats["state"] == "done"
    assert stats["total_time"].startswith("0:")
    assert 0 <= stats["best_metric"] <= 1
    assert stats["epoch"] == stats["total_epochs"] > 0
    manifest = json.loads((trained.run / "models" / "0001" / "manifest.json").read_text(encoding="utf-8"))
    # Five with a fine image and no label, two whose label is unusable; no image of another kind.
    assert manifest["data"]["unlabelled"] >= len(POOL)
    assert set(manifest["data"]["labelled"]) <= {"case_00", "case_01", "case_02"}


def test_unusable_studies_are_left_out_by_name_and_reason(trained: Any, unusable: dict[str, str]) -> None:
    left_out = {entry["id"]: entry["reason"] for entry in trained.stats()["left_out"]}
    assert set(left_out) == {*unusable, "case_03", "case_04"}
    assert "shape (5, 5, 5)" in left_out["case_03"]
    assert "value 7" in left_out["case_04"]


def test_info_offers_the_model(trained: Any) -> None:
    model = trained.get("/info/").json()["models"]["vqseg"]
    assert model["type"] == "segmentation"
    assert model["labels"] == {"lung": 1, "tumour": 2}


def test_slicer_gets_the_mask_in_a_multipart_reply(trained: Any, tmp_path: Path) -> None:
    reply = trained.infer(OBLIQUE, {"result_extension": ".nii.gz", "result_dtype": "uint16", "client_id": "reader"})
    params, content = parts(reply)
    assert params["label_names"] == {"lung": 1, "tumour": 2}
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(content)
    image = nib.load(path)
    mask, affine = expected_mask(trained, OBLIQUE)
    assert image.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)


def test_ohif_gets_an_uncompressed_nrrd(trained: Any) -> None:
    wanted = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    stream = io.BytesIO(trained.infer(OBLIQUE, wanted, output="image").content)
    header = nrrd.read_header(stream)
    raw = stream.read()
    mask, affine = expected_mask(trained, OBLIQUE)
    assert (header["type"], header["encoding"]) == ("uint8", "raw")
    assert raw == mask.tobytes(order="F")
    lps = np.diag([-1, -1, 1, 1]) @ affine
    np.testing.assert_allclose(header["space directions"], lps[:3, :3].T, atol=1e-4)
    np.testing.assert_allclose(header["space origin"], lps[:3, 3], atol=1e-4)


def test_reserved_parameters_change_nothing(trained: Any) -> None:
    sent = {"image": "/etc/hostname", "model": "other", "save_label": True, "label_tag": "../../x"}
    reply = trained.infer(OBLIQUE, sent, output="json")
    assert reply.ok
    assert reply.json()["label_names"] == {"lung": 1, "tumour": 2}
    assert OBLIQUE not in labelled(trained)


def labelled(server: Any) -> set[str]:
    objects = server.get("/datastore/", output="all").json()["objects"]
    return {image for image, entry in objects.items() if entry["labels"]}


@pytest.mark.parametrize(
    ("image", "params", "status", "words"),
    [
        ("case_99", "{}", 404, "unknown image 'case_99'; known: case_00"),
        ("../studies/case_05", "{}", 404, "unknown image"),
        ("", "{}", 400, "no image given"),
        (OBLIQUE, "{not json", 400, "not valid JSON"),
        (OBLIQUE, "[1]", 400, "expected a JSON object"),
        (OBLIQUE, '{"result_extension": ".exe"}', 400, "result_extension='.exe'"),
        (OBLIQUE, '{"result_dtype": "object"}', 400, "result_dtype='object'"),
    ],
)
def test_wrong_request_for_a_mask(trained: Any, image: str, params: str, status: int, words: str) -> None:
    reply = requests.post(
        f"{trained.url}/infer/vqseg", params={"image": image}, files={"params": (None, params)}, timeout=60
    )
    assert reply.status_code == status
    assert words in reply.json()["detail"]


def test_unusable_image_is_refused_with_its_name_and_the_reason(trained: Any, unusable: dict[str, str]) -> None:
    for image, reason in unusable.items():
        reply = trained.infer(image)
        assert reply.status_code == 422, (image, reply.text)
        assert reply.json()["detail"].startswith(f"{image}.nii")
        assert reason in reply.json()["detail"]
    assert trained.infer(OBLIQUE).ok


def test_an_uploaded_image_is_segmented_but_not_kept(trained: Any) -> None:
    file = trained.studies / f"{OBLIQUE}.nii.gz"
    reply = requests.post(
        f"{trained.url}/infer/vqseg",
        params={"output": "image"},
        files={"file": (file.name, file.read_bytes())},
        timeout=60,
    )
    assert reply.ok
    assert trained.get("/datastore/").json()["total"] == 10 + 8


def test_random_is_the_default_strategy(trained: Any) -> None:
    replies = [
        trained.post(f"/activelearning/{name}", {"client_id": "one reader"}).json()
        for name in ("random", Active().strategy, "random")
    ]
    assert len({reply["id"] for reply in replies}) == 1
    for reply in replies:
        assert reply["strategy_used"] == Active().strategy
        assert reply["id"] in POOL
        assert (reply["rank"], reply["score"] > 0) == (1, True)
        assert reply["model_version"] == Predictor.load(trained.run, "cpu").version
        assert reply["scored"] >= 1
        assert reply["reason"]
        assert "typicality in its group" in reply["parts"]


def test_two_clients_get_different_studies(trained: Any) -> None:
    first, second = (
        trained.post("/activelearning/codebook_entropy", {"client_id": f"client {number}"}).json()["id"]
        for number in (1, 2)
    )
    assert first != second
    assert trained.post("/activelearning/uniform", {"client_id": "client 3"}).json()["id"] not in (first, second)


def ended(server: Any, path: str) -> dict[str, Any]:
    """The latest task, once it has ended."""
    end = time.monotonic() + 600
    while (task := server.get(path).json())["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
        time.sleep(0.5)
    return task


def test_scoring_is_not_queued_twice(trained: Any) -> None:
    first, second = trained.post("/scoring/vqseg").json(), trained.post("/scoring/").json()["vqseg"]["result"]
    assert first["id"] == second["id"]
    assert ended(trained, "/scoring/")["status"] == "DONE"
    assert trained.get("/info/").json()["scoring"]["vqseg"]["done"] >= len(POOL)


def test_batch_inference_keeps_masks_as_proposals(trained: Any) -> None:
    before = trained.get("/info/").json()["datastore"]["completed"]
    reply = trained.post("/batch/infer/vqseg", {"max_batch_size": 2}, images="all")
    assert reply.ok, reply.text
    assert ended(trained, "/batch/infer")["status"] == "DONE"
    objects = trained.get("/datastore/", output="all").json()["objects"]
    kept = [entry["labels"]["original"] for entry in objects.values() if "original" in entry["labels"]]
    names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
    assert [entry["info"]["label_info"] for entry in kept] == [names, names]
    assert trained.get("/info/").json()["datastore"]["completed"] == before
