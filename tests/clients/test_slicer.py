"""3D Slicer's own client, unmodified, against a folder and against a PACS: the annotator's whole round."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from builders import write_nifti
from servers import APP, TINY, Server, python_module, serve
from slicer_module import SlicerModule

from vqseg.data.phantom import Grid, draw_anatomy, render
from vqseg.data.reading import read_grid

# Slicer's client leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]
LABELS = "tumour,lung"  # not in alphabetical order
VALUES = {"tumour": 1, "lung": 2}


@pytest.fixture(scope="module", params=["folder", "pacs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("slicer")
    if request.param == "folder":
        studies: Any = folder / "studies"
        studies.mkdir()
        for number in range(6):
            rng = np.random.default_rng(number)
            grid = Grid((30, 24, 16), (11.0, 11.0, 15.0), axis=number % 3, degrees=5.0 * (number % 2))
            write_nifti(studies / f"case_{number}.nii.gz", render(draw_anatomy(rng), grid, rng)[0], grid.affine)
    else:
        pacs = request.getfixturevalue("pacs")
        pacs.delete("SEG")
        studies = pacs.dicomweb
    with serve(python_module(), str(APP), studies, folder, folder, {**TINY, "labels": LABELS}) as running:
        yield running
    if request.param == "pacs":
        pacs.delete("SEG")


@pytest.fixture
def client(client_module: ModuleType, server: Server, tmp_path: Path) -> Any:
    return client_module.MONAILabelClient(server.url, str(tmp_path), "slicer-user")


def bright_and_dark(image: Path) -> np.ndarray:
    """A mask to submit: air within the body as lung, a corner of it as tumour."""
    array = np.asarray(nib.load(image).dataobj)
    mask = np.where((array > -950) & (array < -500), VALUES["lung"], 0).astype(np.uint8)
    mask[: mask.shape[0] // 2][mask[: mask.shape[0] // 2] > 0] = VALUES["tumour"]
    return mask


def submit(client: Any, sample: dict[str, Any], mask: np.ndarray, folder: Path, segments: list[str]) -> None:
    """As the module does: every segment is listed, empty ones too, numbered by their order."""
    file = write_nifti(folder / "label.nii.gz", mask, read_grid(Path(sample["path"])).affine)
    info = [{"name": name, "idx": number} for number, name in enumerate(segments, 1)]
    client.save_label(sample["id"], str(file), params={"label_info": info, "model": "vqseg"})


@pytest.mark.slow
def test_a_round_of_annotation(
    client: Any, client_module: ModuleType, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = client.info()
    assert info["labels"] == ["tumour", "lung"]
    assert not info.get("config")
    assert not client.auth_enabled()

    with pytest.raises(client_module.MONAILabelClientException, match="no trained model"):
        client.infer("vqseg", sorted(client.datastore()["objects"])[0], {})

    done: list[str] = []
    for _ in range(3):
        sample = client.next_sample("uniform", {})
        assert sample["id"] not in done
        assert Path(sample["path"]).is_file()
        submit(client, sample, bright_and_dark(Path(sample["path"])), tmp_path, ["tumour", "lung"])
        done.append(sample["id"])
        assert client.info()["datastore"]["completed"] == len(done)

    # A mask with one structure only, while the module lists both: it is stored under its own name.
    sample = {"id": done[0], "path": str(tmp_path / "image.nii.gz")}
    image = server.get("/datastore/image", image=done[0])
    (tmp_path / "image.nii.gz").write_bytes(image.content)
    mask = bright_and_dark(tmp_path / "image.nii.gz")
    mask[mask == VALUES["tumour"]] = 0
    submit(client, sample, mask, tmp_path, ["tumour", "lung"])
    assert client.info()["datastore"]["completed"] == 3
    stored = client.datastore()["objects"][done[0]]["labels"]
    assert "final" in stored
    back = np.asarray(nib.load(renamed(client.download_label(done[0], "final"))).dataobj)
    assert np.array_equal(back, mask)

    client.train_start("vqseg", {})
    server.wait(lambda _: client.train_status(True))  # it is started in the background
    stats = server.wait(lambda stats: stats["state"] in ("done", "failed"), 240)
    assert stats["state"] == "done", stats
    assert stats["epoch"] == stats["total_epochs"]
    assert client.info()["train_stats"]["vqseg"]["best_metric"] >= 0

    # What the module logs, Slicer shows in its Python console and its log.
    with caplog.at_level(logging.INFO):
        sample = SlicerModule(client_module, server.url, tmp_path / "module").next_sample("random")
    assert sample["id"] not in done
    assert sample.keys() >= {"score", "rank", "reason", "parts", "scored", "model_version"}
    assert sample["reason"]
    assert any(record.getMessage() == str(sample) for record in caplog.records if record.levelno == logging.INFO)
    file, params = client.infer("vqseg", sample["id"], {"result_extension": ".nii.gz", "result_dtype": "uint8"})
    assert params["label_names"] == VALUES
    answer, grid = nib.load(renamed(file)), read_grid(Path(sample["path"]))
    assert answer.shape == grid.shape
    assert np.allclose(answer.affine, grid.affine, atol=1e-3)
    assert set(np.unique(np.asarray(answer.dataobj))) <= {0, 1, 2}

    server.wait(lambda _: not client.train_status(True))  # the process lives on for a moment
    client.train_start("vqseg", {"steps": 100000})
    server.wait(lambda stats: stats["state"] == "running")
    client.train_stop()
    server.wait(lambda stats: stats["state"] == "interrupted")


def renamed(file: str) -> Path:
    """The client takes every dot of a UID for the beginning of a suffix."""
    path = Path(file)
    target = path.with_name("answer.nii.gz")
    target.write_bytes(path.read_bytes())
    return target
