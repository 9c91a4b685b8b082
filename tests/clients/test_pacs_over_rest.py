"""A server in front of a real PACS: the proxy of the viewer, DICOM SEG as an answer, and a PACS that goes away."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from answers import read_nrrd, voxel_counts
from servers import APP, TINY, Server, free_port, python_module, serve

LABELS = "tumour,lung"
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}


@pytest.fixture(scope="module")
def server(pacs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Trained on three phantoms that were submitted as OHIF does."""
    folder = tmp_path_factory.mktemp("server")
    pacs.delete("SEG")
    with serve(python_module(), str(APP), pacs.dicomweb, folder, folder, {**TINY, "labels": LABELS}) as running:
        for number in range(3):
            (folder / "label.bin").write_bytes(pacs.masks[f"phantom_{number}"].tobytes(order="F"))
            names = [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}]
            assert running.put_label(pacs.series[f"phantom_{number}"], folder / "label.bin", names).ok
        assert running.post("/train/").ok
        assert running.wait(lambda stats: stats["state"] in ("done", "failed"), 240)["state"] == "done"
        yield running
    pacs.delete("SEG")


@pytest.mark.slow
def test_the_trainer_reads_labels_by_name_and_every_unlabelled_series(server: Server, pacs: Any) -> None:
    stats = server.stats()
    assert stats["left_out"] == []
    assert stats["unlabelled"] >= 3


def test_the_viewer_gets_its_mask_in_the_order_of_the_series(server: Server, pacs: Any) -> None:
    for name in ("phantom_3", "phantom_4", "phantom_5"):
        reply = server.infer(pacs.series[name], OHIF, output="image")
        assert reply.ok, reply.text
        _, array = read_nrrd(reply.content)
        assert array.shape == pacs.masks[name].shape


@pytest.mark.parametrize("name", ["phantom_0", "phantom_1", "phantom_2"])
@pytest.mark.parametrize("form", ["label.bin", "label.nii.gz"])
def test_a_label_comes_back_from_the_pacs_as_it_was_sent(
    server: Server, pacs: Any, name: str, form: str, tmp_path: Path
) -> None:
    """Axial, oblique sagittal and coronal; as OHIF and as Slicer send it, in the orientation of the image they got."""
    image, file = pacs.series[name], tmp_path / form
    mask = np.roll(pacs.masks[name], 1, axis=0)  # not what is stored already
    if form == "label.bin":
        file.write_bytes(mask.tobytes(order="F"))
    else:
        (tmp_path / "image.nii.gz").write_bytes(server.get("/datastore/image", image=image).content)
        nib.save(nib.Nifti1Image(mask, nib.load(tmp_path / "image.nii.gz").affine), file)
    reply = server.put_label(image, file, [{"name": "lung", "idx": 1}, {"name": "tumour", "idx": 2}])
    assert reply.ok, reply.text
    (tmp_path / "back.nii.gz").write_bytes(server.get("/datastore/label", label=image, tag="final").content)
    back = np.asarray(nib.load(tmp_path / "back.nii.gz").dataobj)
    assert np.array_equal(back == 2, mask == 1)
    assert np.array_equal(back == 1, mask == 2)


def test_next_study_is_named_as_the_viewer_opens_it(server: Server, pacs: Any) -> None:
    sample = server.post("/activelearning/random").json()
    assert sample["id"] in {pacs.series[f"phantom_{number}"] for number in (3, 4, 5)}
    assert sample["SeriesInstanceUID"] == sample["id"]
    assert pydicom.uid.UID(sample["StudyInstanceUID"]).is_valid


def test_an_answer_as_segmentation_needs_no_label_info(server: Server, pacs: Any) -> None:
    image = pacs.series["phantom_3"]
    reply = server.infer(image, output="dicom_seg")
    as_image = server.infer(image, OHIF, output="image")
    _, mask = read_nrrd(as_image.content)
    if not mask.any():
        assert reply.status_code == 422
        assert "empty" in reply.json()["detail"]
        return
    assert reply.headers["content-type"] == "application/dicom"
    stored = pydicom.dcmread(io.BytesIO(reply.content))
    assert stored.ReferencedSeriesSequence[0].SeriesInstanceUID == image
    counts, values = voxel_counts(stored), {"tumour": 1, "lung": 2}
    assert counts == {name: int((mask == values[name]).sum()) for name in counts}


def test_the_proxy_keeps_the_query(server: Server, pacs: Any) -> None:
    """Without it the viewer shows other patients' studies as priors."""
    everything = server.get("/proxy/dicom/qido/studies").json()
    assert len(everything) == 6
    study = everything[0]["0020000D"]["Value"][0]
    assert len(server.get("/proxy/dicom/qido/studies", StudyInstanceUID=study).json()) == 1


def test_the_proxy_passes_metadata_and_pixels(server: Server, pacs: Any) -> None:
    series = server.get("/proxy/dicom/qido/series", SeriesInstanceUID=pacs.series["phantom_0"]).json()[0]
    study = series["0020000D"]["Value"][0]
    path = f"studies/{study}/series/{pacs.series['phantom_0']}"
    metadata = server.get(f"/proxy/dicom/wado/{path}/metadata").json()
    assert len(metadata) == pacs.masks["phantom_0"].shape[2]
    instance = metadata[0]["00080018"]["Value"][0]
    frame = server.get(f"/proxy/dicom/wado/{path}/instances/{instance}/frames/1")
    assert frame.ok
    assert "multipart/related" in frame.headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "wado/../../tools/execute-script",
        "%2e%2e/tools/execute-script",
        "wado/%252e%252e/%252e%252e/system",
        "wado/studies/../../system",
        "tools",
        "qido/patients",
        "stow/studies",
        "wado/studies/1/series/2/instances/3/bulk/../../../../../../system",
    ],
)
def test_the_proxy_leads_nowhere_else(server: Server, path: str) -> None:
    # Not through requests' own clean-up of dots.
    prepared = requests.Request("GET", server.url).prepare()
    prepared.url = f"{server.url}/proxy/dicom/{path}"
    with requests.Session() as session:
        reply = session.send(prepared, timeout=30)
    assert reply.status_code == 404, reply.text
    assert "Orthanc" not in reply.text


def test_the_proxy_does_not_write(server: Server) -> None:
    assert server.post("/proxy/dicom/stow/studies").status_code == 400


def test_a_wrong_label_is_refused_in_words_and_the_server_lives(server: Server, pacs: Any, tmp_path: Path) -> None:
    image, names = pacs.series["phantom_4"], [{"name": "lung", "idx": 1}]
    label = tmp_path / "label.bin"
    for content, given, words in (
        (np.zeros_like(pacs.masks["phantom_4"]), names, "empty"),
        (pacs.masks["phantom_4"][:-1], names, "voxels"),
        (np.ones_like(pacs.masks["phantom_4"]), [{"name": "liver", "idx": 1}], "known: tumour, lung"),
    ):
        label.write_bytes(content.tobytes(order="F"))
        reply = server.put_label(image, label, given)
        assert 400 <= reply.status_code < 500
        assert words in reply.json()["detail"]
    assert server.get("/info/").json()["datastore"]["completed"] == 3


@pytest.mark.slow
def test_a_pacs_that_is_away_is_a_502_in_words(tmp_path: Path) -> None:
    studies = f"http://127.0.0.1:{free_port()}/dicom-web"
    with serve(python_module(), str(APP), studies, tmp_path, tmp_path, {**TINY, "labels": LABELS}) as server:
        reply = server.post("/activelearning/random")
        assert reply.status_code == 502
        assert "does not answer" in reply.json()["detail"]
        assert server.get("/proxy/dicom/qido/studies").status_code == 502
        assert "does not answer" in server.get("/info/").json()["datastore"]["error"]
