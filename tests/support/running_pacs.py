"""An Orthanc that runs, as a test looks into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import requests
from numpy.typing import NDArray
from servers import free_port


@dataclass
class RunningPACS:
    """`url` of Orthanc's REST interface; `series` UIDs by the name of the phantom; `masks` (columns, rows, slices)."""

    url: str
    series: dict[str, str]
    masks: dict[str, NDArray[np.uint8]]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def instances(self, modality: str) -> list[pydicom.Dataset]:
        """Every object of a modality, read back from Orthanc."""
        found = requests.post(
            f"{self.url}/tools/find", json={"Level": "Instance", "Query": {"Modality": modality}}, timeout=30
        ).json()
        files = [requests.get(f"{self.url}/instances/{one}/file", timeout=30).content for one in found]
        return [pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)) for content in files]

    def delete(self, modality: str) -> None:
        """Remove every object of a modality."""
        self._delete({"Modality": modality})

    def delete_series(self, uid: str) -> None:
        self._delete({"SeriesInstanceUID": uid})

    def _delete(self, query: dict[str, str]) -> None:
        wanted = {"Level": "Series", "Query": query}
        for one in requests.post(f"{self.url}/tools/find", json=wanted, timeout=30).json():
            requests.delete(f"{self.url}/series/{one}", timeout=30)


@contextmanager
def running_orthanc(orthanc: ModuleType, storage: Path) -> Iterator[str]:
    """Address of an Orthanc of one's own, started by `apps/pacs/orthanc.py` and stopped at the end."""
    port = free_port()
    process = orthanc.start(storage, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
