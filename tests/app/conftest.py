"""Real servers on loopback, started as a user starts them, and the app's modules for tests without a server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from servers import APP, ROOT, TINY, Server, launcher, python_module, serve
from watched_servers import QUICK, WatchedServer, publish, serve_watched
from workplaces import RAMP, Workplace, noise

from vqseg.data.phantom import Grid, draw_anatomy, render

LABELS = {"lung": 1, "tumour": 2}
GRIDS = (
    Grid((30, 24, 16), (11.0, 11.0, 15.0)),
    Grid((30, 24, 16), (11.0, 11.0, 15.0), axis=0, degrees=12.0, flips=(True, True, False)),
    Grid((28, 22, 20), (12.0, 12.0, 12.0), axis=1, degrees=-8.0),
)


def write_study(folder: Path, number: int, labelled: bool, reference: Path | None = None) -> Path:
    """One tiny phantom study, `case_NN`."""
    rng = np.random.default_rng(number)
    grid = GRIDS[number % len(GRIDS)]
    image, mask = render(draw_anatomy(rng), grid, rng)
    path = folder / f"case_{number:02d}.nii.gz"
    nib.save(nib.Nifti1Image(image, grid.affine), path)
    for place in filter(None, (folder / "labels" / "final" if labelled else None, reference)):
        place.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(mask, grid.affine), place / path.name)
    return path


def make_studies(folder: Path, count: int = 8, labelled: int = 3) -> Path:
    """Studies as MONAI Label keeps them; the true masks of all lie in `<folder>-reference`."""
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps(LABELS), encoding="utf-8")
    for number in range(count):
        write_study(folder, number, number < labelled, folder.with_name(f"{folder.name}-reference"))
    return folder


@pytest.fixture(scope="session")
def launch() -> Callable[..., Any]:
    """Start a server of one's own in `folder`, from there and through MONAI Label's launcher."""

    @contextmanager
    def started(folder: Path, conf: Mapping[str, str]) -> Iterator[Server]:
        studies = make_studies(folder / "studies")
        with serve(launcher(), str(APP), studies, folder, folder, {**TINY, **conf}) as server:
            yield server

    return started


@pytest.fixture(scope="session")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Start a server whose model, of random weights, has these `settings`."""

    @contextmanager
    def started(
        settings: Mapping[str, Any], conf: Mapping[str, str], command: list[str] | None = None
    ) -> Iterator[WatchedServer]:
        folder = tmp_path_factory.mktemp("watched")
        publish(folder / "run", LABELS, settings)
        with serve_watched(make_studies(folder / "studies", count=5), folder, conf, command) as server:
            server.infer("case_04").raise_for_status()  # what is loaded once is loaded now
            yield server

    return started


@pytest.fixture(scope="session")
def serve_app() -> Callable[..., Any]:
    """Start a server on `studies` of one's own, with nothing set but `conf`; `folder` gets its log and its models."""

    @contextmanager
    def started(studies: Path, folder: Path, conf: Mapping[str, str]) -> Iterator[Server]:
        with serve(python_module(), str(APP), studies, folder, folder, conf) as server:
            yield server

    return started


@pytest.fixture
def tiny_studies(tmp_path: Path) -> Path:
    """Studies for a server of one's own."""
    return make_studies(tmp_path / "studies")


@pytest.fixture(scope="session")
def studies_in() -> Callable[[Path], Path]:
    """Makes studies in a folder for a server that a test's own module starts."""
    return lambda folder: make_studies(folder, count=5)


@pytest.fixture(scope="session")
def unusable() -> dict[str, str]:
    """Image id -> a part of the reason, of the images among the studies of `trained`."""
    return dict(UNUSABLE)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which nobody trains, started in `/` on a folder with spaces in its name."""
    folder = tmp_path_factory.mktemp("fresh")
    studies = make_studies(folder / "my chest studies", count=6)
    with serve(python_module(), str(APP), studies, folder, Path("/"), TINY) as server:
        yield server


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with unusable images and labels among the studies, started in the repository's root and trained."""
    folder = tmp_path_factory.mktemp("trained")
    studies = make_studies(folder / "studies", count=10, labelled=5)
    write_unusable_images(studies)
    final = studies / "labels" / "final"
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), final / "case_03.nii.gz")
    image = nib.load(studies / "case_04.nii.gz")
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.uint8), image.affine), final / "case_04.nii.gz")
    with serve(python_module(), "vqseg_app", studies, folder, ROOT, TINY) as server:
        assert server.post("/train/vqseg").ok
        stats = server.wait(lambda stats: stats["state"] in ("done", "failed"))
        assert stats["state"] == "done", (stats, server.get("/train/").text)
        yield server


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    """A server with a model of random weights that takes archives, with all it keeps in one folder, for whoever means
    harm: its scoring has ended, so that nothing there changes but by requests."""
    folder = tmp_path_factory.mktemp("target")
    publish(folder / "run", LABELS, QUICK)
    studies = make_studies(folder / "studies", count=5)
    # No `sitecustomize` of ours: a test plants one of that name.
    variables = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "PYTHONPATH": ""}
    conf = {**TINY, "open_routes": "archives", "upload_unpacked_gib": "0.1"}
    with serve(python_module(), str(APP), studies, folder, folder, conf, variables=variables) as server:
        server.infer("case_04").raise_for_status()  # what is loaded once is loaded now
        end = time.monotonic() + 600
        while server.get("/scoring/", all=True).text.count('"DONE"') == 0 and time.monotonic() < end:
            time.sleep(0.5)
        yield WatchedServer(**vars(server))


UNUSABLE = {
    "complex": "complex",
    "corrupt": "cannot be read",
    "empty": "cannot be read",
    "four": "4 dimensions",
    "nan": "no voxel has a finite value",
    "rgb": "colour",
    "singular": "affine",
    "two": "2 dimensions",
}


def write_unusable_images(folder: Path) -> None:
    """One image for each name in `UNUSABLE`."""
    cube = np.ones((6, 6, 6), np.float32)
    arrays = {
        "complex": cube.astype(np.complex64),
        "four": np.ones((6, 6, 6, 2), np.float32),
        "nan": cube * np.nan,
        "rgb": np.zeros((6, 6, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "two": cube[0],
    }
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    whole = (folder / "four.nii.gz").read_bytes()
    (folder / "corrupt.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    singular = nib.Nifti1Image(cube, np.eye(4))
    singular.header.set_sform(np.zeros((4, 4)), code=1)
    singular.header.set_qform(None, code=0)
    (folder / "singular.nii").write_bytes(bytes(singular.header.structarr.tobytes()) + b"\0" * 4 + cube.tobytes())


@pytest.fixture
def unwatched(app_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No datastore looks at its folder but when it is asked to."""
    monkeypatch.setattr(app_module("datastore").settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)


@pytest.fixture
def workplace(app_module: Any, tmp_path: Path, unwatched: None) -> Callable[..., Workplace]:
    """Makes what the app is made of, in one folder, with settings of the selection."""
    return lambda **settings: Workplace(tmp_path, app_module, **settings)


@pytest.fixture
def place(workplace: Callable[..., Workplace]) -> Workplace:
    """Without a study or a model."""
    return workplace()


@pytest.fixture
def five(place: Workplace) -> Workplace:
    """Two labelled studies, three open ones and a model."""
    place.add(a=noise(0), b=RAMP, c=noise(1), known=noise(2), other=RAMP.T)
    place.label("known", noise(2) > 1)
    place.label("other", 2 * (RAMP.T > 2))
    place.publish()
    return place
