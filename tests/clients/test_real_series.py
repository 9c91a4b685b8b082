"""Real series in a real PACS: expert contours become labels, and JPEG 2000 is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests
from builders import real_data, write_identified
from running_pacs import RunningPACS, running_orthanc
from servers import ROOT, environment, free_port

from vqseg.data.reading import read_grid, read_image, read_mask

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def dicomweb(orthanc: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Orthanc with the three real series. One lacks its UIDs, without which no PACS takes it: it gets new ones."""
    folder = tmp_path_factory.mktemp("real")
    jpeg2000 = write_identified(real_data("ct_dicom/abdomen_jpeg2000"), folder / "jpeg2000")
    with running_orthanc(orthanc, folder / "storage") as url:
        running = RunningPACS(url, {}, {})
        for source in (real_data("ct_dicom/lung_cancer_rtstruct"), real_data("ct_dicom/abdomen"), jpeg2000):
            assert orthanc.load(source, running.port) > 0
        yield running.dicomweb


@pytest.fixture
def studies(dicomweb: str, tmp_path: Path, app_module: Callable[[str], ModuleType]) -> Any:
    label_set = app_module("labels").LabelSet({"nodule": 1, "tumour": 2}, None)
    client = app_module("pacs").PACS(dicomweb)
    memory = app_module("memory_guard").MemoryGuard()
    return app_module("pacs_datastore").PACSStudies(client, tmp_path, 1e9, label_set, memory)


def series_of(dicomweb: str, slices: int) -> str:
    """UID of the CT series with so many slices."""
    found = requests.get(f"{dicomweb}/series", params={"Modality": "CT"}, timeout=30).json()
    (uid,) = [one["0020000E"]["Value"][0] for one in found if one["00201209"]["Value"][0] == slices]
    return str(uid)


@pytest.mark.parametrize(
    ("source", "slices"), [("abdomen", 41), ("abdomen_jpeg2000", 20), ("lung_cancer_rtstruct/image", 60)]
)
def test_a_series_from_the_pacs_is_the_series_on_disk(dicomweb: str, studies: Any, source: str, slices: int) -> None:
    fetched = read_image(Path(studies.get_image_uri(series_of(dicomweb, slices))))
    on_disk = read_image(real_data(f"ct_dicom/{source}"))
    assert np.array_equal(fetched.array, on_disk.array)
    assert np.allclose(fetched.affine, on_disk.affine, atol=1e-3)


def test_expert_contours_become_a_label(dicomweb: str, studies: Any) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "import_labels"), "--pacs", dicomweb, "--name", "GTV-1=tumour"]
    lean = environment()
    first = subprocess.run(command, env=lean, capture_output=True, encoding="utf-8", check=False)
    assert first.returncode == 0, first.stderr
    assert "now the label of" in first.stdout
    image = series_of(dicomweb, 60)
    assert studies.get_labeled_images() == [image]
    grid = read_grid(Path(studies.get_image_uri(image)))
    ours = read_mask(Path(studies.get_label_uri(image, "final")), grid, {"nodule": 1, "tumour": 2}) == 2
    file = real_data("ct_dicom/lung_cancer_nifti/mask/mask.nii.gz")
    published = (
        read_mask(file, read_grid(real_data("ct_dicom/lung_cancer_nifti/image/phantom.nii.gz")), {"gtv": 1}) == 1
    )
    assert 2 * (ours & published).sum() / (ours.sum() + published.sum()) > 0.99
    # Once more changes nothing.
    second = subprocess.run(command, env=lean, capture_output=True, encoding="utf-8", check=False)
    assert second.returncode == 0
    assert "now the label of" not in second.stdout


def test_import_says_what_is_wrong() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "import_labels"), "--name", "a=b"]
    nobody = f"http://127.0.0.1:{free_port()}/dicom-web"
    lean = environment()
    down = subprocess.run([*command, "--pacs", nobody], env=lean, capture_output=True, encoding="utf-8", check=False)
    assert down.returncode == 1
    assert "does not answer" in down.stderr
    assert "Traceback" not in down.stderr
    wrong = subprocess.run(
        [*command, "--pacs", nobody, "--name", "a"], env=lean, capture_output=True, encoding="utf-8", check=False
    )
    assert wrong.returncode == 2
    assert "REGION=STRUCTURE" in wrong.stderr
