"""A series with a patient's name goes through a server in front of a PACS: the name stays in the PACS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from builders import write_dicom
from running_pacs import running_orthanc
from servers import APP, Server, python_module, serve

CANARY = "Zwitschermann"
# Longer than DICOM allows, with too many parts: what reads it has reason to complain.
BAD_NAME = f"{CANARY}=" * 8
NAMES = [{"name": "lung", "idx": 1}]


@pytest.fixture(scope="module")
def named(orthanc: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server and the UIDs of its two series, whose names are a proper and a bad one."""
    folder, series = tmp_path_factory.mktemp("named"), {}
    with running_orthanc(orthanc, folder / "storage") as url:
        for kind, name in (("good", f"{CANARY}^Canaria"), ("bad", BAD_NAME)):
            write_dicom(folder / kind, np.zeros((12, 10, 8), np.int16), (1, 0, 0), (0, 1, 0), (2.0, 2.0, 3.0))
            for file in (folder / kind).iterdir():
                data = pydicom.dcmread(file)
                data.PatientID = data.PatientComments = CANARY
                data.add(pydicom.DataElement(0x00100010, "PN", name, validation_mode=pydicom.config.IGNORE))
                data.save_as(file)
            series[kind] = str(data.SeriesInstanceUID)
            assert orthanc.load(folder / kind, int(url.rsplit(":", 1)[1])) == 8
        served = folder / "served"
        served.mkdir()
        with serve(python_module(), str(APP), f"{url}/dicom-web", served, served, {"labels": "lung"}) as server:
            yield server, series


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_the_name_is_in_no_log_metric_error_or_file_name(
    named: tuple[Server, dict[str, str]], kind: str, tmp_path: Path
) -> None:
    server, series = named
    label = tmp_path / "label.bin"
    errors = []
    for content in (np.ones(960, np.uint8), np.zeros(960, np.uint8), np.ones(7, np.uint8)):
        label.write_bytes(content.tobytes())
        errors.append(server.put_label(series[kind], label, NAMES))
    errors += [server.infer(series[kind]), server.infer("1.2.3")]
    assert server.get("/datastore/image", image=series[kind]).ok
    server.get("/datastore/label", label=series[kind], tag="final")
    server.get(f"/vqseg/labels/{series[kind]}")
    server.post("/activelearning/random")
    # As the viewer searches for a patient.
    server.get("/proxy/dicom/qido/studies", PatientName=f"*{CANARY}*")
    server.get(f"/proxy/dicom/qido/studies/{CANARY}")
    assert errors[0].ok or kind == "bad"
    assert CANARY not in server.get("/vqseg/metrics").text
    assert not [reply.text for reply in errors if CANARY in reply.text]
    folder = server.run.parent
    assert not [place for place, _, files in os.walk(folder) if CANARY in place or CANARY in "".join(files)]
    texts = [folder / "server.log", folder / "run" / "audit.jsonl"]
    assert not [text for text in texts if CANARY in text.read_text(encoding="utf-8")]
