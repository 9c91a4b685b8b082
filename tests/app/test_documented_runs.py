"""The `vqseg` lines and the Python of README.md and docs/ run: each page from start to end, on tiny phantoms."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import foundation_folder
from click.testing import CliRunner
from documentation import Block, blocks
from servers import TINY
from watched_servers import QUICK, publish

from vqseg.cli import main
from vqseg.data.phantom import Grid, draw_anatomy, render

# The second word of a line, and why it is not run.
UNRUN = {
    "fetch-foundation": "fetches from the internet; tests/unit/networks/test_fetch_foundation.py has a hub of its own"
}
LABELS = {"lung": 1, "tumour": 2}
GRID = Grid((30, 24, 16), (11.0, 11.0, 15.0))
# What makes a training one of seconds; what comes last on a line wins.
SETTINGS = {key: value for key, value in TINY.items() if "." in key and key != "train.steps"}
SETTINGS["model.channels"] = "[4,8,8]"  # as many levels as every preset needs
SETTINGS_2D = {"data.patch_size": "[28,28]", "data.spacing": "[12,12,0]"}
TRAINING = ("--steps", "4", "--device", "cpu")
SMALL: dict[str, tuple[str, ...]] = {
    "train": TRAINING,
    "pretrain": TRAINING,
    "simulate": (
        *("--set", "train.steps=4", "--device", "cpu", "--arms", "uniform", "--jobs", "1"),
        *("--start", "1", "--rounds", "1", "--picks", "1", "--seeds", "1"),
    ),
}
RUNNABLE = [
    block
    for block in blocks("bash", "python")
    if block.language == "python" or any(words[0] == "vqseg" for words in block.commands())
]


def test_no_reason_stands_for_nothing() -> None:
    used = {words[1] for block in blocks("bash") for words in block.commands() if words[0] == "vqseg"}
    assert set(UNRUN) - used == set()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("shared")
    studies, reference, final = (folder / "demo" / name for name in ("studies", "reference", "studies/labels/final"))
    for made in (reference, final, folder / "masks", folder / "acdc"):
        made.mkdir(parents=True)
    names = [f"phantom_{number:02d}" for number in range(1, 13)]
    for number, name in enumerate(names, 1):
        rng = np.random.default_rng(number)
        image, mask = render(draw_anatomy(rng), GRID, rng)
        nib.save(nib.Nifti1Image(image, GRID.affine), studies / f"{name}.nii.gz")
        masks = [reference] + [folder / "masks"] * (number <= 5) + [final] * (number <= 3)
        for place in masks:
            nib.save(nib.Nifti1Image(mask, GRID.affine), place / f"{name}.nii.gz")
    split = {"labels": LABELS, "train": names[:4], "val": names[4:5], "three_patients": names[:3]}
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")
    foundation_folder(folder / "FOLDER")
    for name in ("DIR", "images", "acdc/images"):
        (folder / name).symlink_to(studies)
    for name, target in (("MASKS", folder / "masks"), ("LABELS_OF_3_PATIENTS", final)):
        (folder / name).symlink_to(target)
    (folder / "image.nii.gz").symlink_to(studies / "phantom_01.nii.gz")
    return folder


@dataclass
class Walk:
    """A page that was run in `folder`, and what went `wrong`, by block."""

    folder: Path
    wrong: dict[str, str]


@pytest.fixture(scope="module")
def walk(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Walk]:
    """Runs a page from start to end, once."""

    @functools.cache
    def run_page(page: Path) -> Walk:
        folder, wrong = tmp_path_factory.mktemp(page.stem), {}
        for entry in shared.iterdir():
            (folder / entry.name).symlink_to(entry)
        publish(folder / "RUN", LABELS, QUICK)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for block in (block for block in RUNNABLE if block.page == page):
                try:
                    run_block(block)
                except Exception as error:
                    wrong[str(block)] = repr(error)
        return Walk(folder, wrong)

    return run_page


def run_block(block: Block) -> None:
    if block.language == "python":
        # Lines of the page, so that a failure names them.
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), {"__name__": "documentation"})
        return
    for words in block.commands():
        if words[0] == "vqseg" and words[1] not in UNRUN:
            run(words[1:])


def run(words: list[str]) -> None:
    words = [word.replace("/etc/vqseg/", "") for word in words]
    settings = {}
    if words[0] in SMALL:
        settings = SETTINGS | (SETTINGS_2D if "data.spatial_dims=2" in words else {})
    more = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(main, [*words, *more, *SMALL.get(words[0], ())])
    if result.exit_code:
        raise RuntimeError(f"vqseg {' '.join(words)}: {result.output or result.exception!r}")
    for option, out in itertools.pairwise(words):
        assert option != "--out" or Path(out).exists(), f"vqseg {' '.join(words)}: {out} was not made"


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_a_page_runs_from_start_to_end(block: Block, walk: Callable[[Path], Walk]) -> None:
    wrong = walk(block.page).wrong
    assert str(block) not in wrong, wrong[str(block)]


@pytest.mark.parametrize("block", [block for block in RUNNABLE if "mask.nii.gz" in block.text], ids=str)
def test_the_library_writes_a_mask_on_the_grid_of_its_image(block: Block, walk: Callable[[Path], Walk]) -> None:
    mask = nib.load(walk(block.page).folder / "mask.nii.gz")
    assert mask.shape == GRID.shape
    assert np.allclose(mask.affine, GRID.affine)
