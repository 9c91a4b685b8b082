"""A real Orthanc on loopback with small phantoms as DICOM series, and real files where they are at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
from builders import write_dicom
from dashboard_page import WIDE, Dashboard
from ohif import CHROMIUM, browser
from playwright.sync_api import expect
from running_pacs import RunningPACS, running_orthanc
from scipy.spatial.transform import Rotation
from servers import ROOT, Server, script_module
from slicer_module import slicer_client

from vqseg.data.phantom import Grid as PhantomGrid
from vqseg.data.phantom import draw_anatomy, render

SPACING = (11.0, 11.0, 15.0)
# What a page shows is waited for; five seconds, Playwright's own limit, are little on a machine that is busy.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def client_module() -> ModuleType:
    return slicer_client()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (apt-get install chromium fonts-dejavu-core)")
    with browser() as running:
        yield running


@pytest.fixture
def dashboard(server: Server, chromium: Any) -> Iterator[Dashboard]:
    """The page of the `server` of a test's own module, in which nothing may go wrong."""
    page = chromium.new_page(viewport=WIDE)
    yield (dashboard := Dashboard(page, server))
    assert dashboard.failures == []
    page.close()


@pytest.fixture(scope="session")
def orthanc() -> ModuleType:
    """`apps/pacs/orthanc.py` as a module. Skips where Orthanc is not installed."""
    module = script_module(ROOT / "apps" / "pacs" / "orthanc.py")
    if module.program() is None:
        pytest.skip("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)")
    return module


@pytest.fixture(scope="session")
def pacs(orthanc: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPACS]:
    folder = tmp_path_factory.mktemp("pacs")
    with running_orthanc(orthanc, folder / "storage") as url:
        running = RunningPACS(url, {}, {})
        for number in range(6):
            add_phantom(running, orthanc, folder / f"phantom_{number}", number)
        yield running


def add_phantom(running: RunningPACS, orthanc: ModuleType, folder: Path, number: int) -> None:
    """One series: axial, sagittal or coronal by turns, every other one oblique."""
    rng = np.random.default_rng(number)
    image, mask = render(draw_anatomy(rng), PhantomGrid((30, 24, 16), SPACING), rng)
    order = [(0, 1, 2), (1, 2, 0), (0, 2, 1)][number % 3]
    turn = Rotation.from_euler("xz", [15.0, 25.0] if number % 2 else [0.0, 0.0], degrees=True)
    directions = turn.apply(np.eye(3)[list(order)])
    write_dicom(
        folder,
        image.transpose(order),
        directions[0],
        directions[1],
        [SPACING[axis] for axis in order],
    )
    assert orthanc.load(folder, running.port) == image.shape[order[2]]
    name = f"phantom_{number}"
    running.series[name] = str(pydicom.dcmread(next(folder.iterdir())).SeriesInstanceUID)
    running.masks[name] = mask.transpose(order)
