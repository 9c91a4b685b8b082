"""Laws of the demonstration studies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vqseg.data.phantom import LABELS, Grid, draw_anatomy, draw_grid, render, write_demo_studies

PLAIN = Grid((136, 108, 80), (2.5, 2.5, 3.0))
OBLIQUE = Grid((114, 90, 60), (3.0, 3.0, 4.0), (2.0, -3.0, 1.0), axis=0, degrees=12.0, flips=(True, True, False))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo studies")
    write_demo_studies(root / "studies", reference=root / "reference")
    return root


def test_layout(demo: Path) -> None:
    names = {f"phantom_{number:02d}.nii.gz" for number in range(1, 13)}
    labelled = {"phantom_01.nii.gz", "phantom_02.nii.gz", "phantom_03.nii.gz"}
    assert set(contents(demo / "reference")) == names
    assert set(contents(demo / "studies")) == names | {"labels.json"} | {f"labels/final/{name}" for name in labelled}
    assert json.loads((demo / "studies" / "labels.json").read_text(encoding="utf-8")) == LABELS
    for name in labelled:
        assert (demo / "studies/labels/final" / name).read_bytes() == (demo / "reference" / name).read_bytes()


def test_files_are_on_one_grid_in_millimetres(demo: Path) -> None:
    for path in sorted((demo / "studies").glob("*.nii.gz")):
        image, mask = nib.load(path), nib.load(demo / "reference" / path.name)
        assert (image.get_data_dtype(), mask.get_data_dtype()) == (np.int16, np.uint8)
        assert image.shape == mask.shape
        for nifti in (image, mask):
            assert nifti.header.get_xyzt_units()[0] == "mm"
            assert int(nifti.header["sform_code"]) == int(nifti.header["qform_code"]) == 1
            np.testing.assert_allclose(nifti.get_qform(), image.affine, atol=1e-4)


def test_every_study_has_every_label_within_its_field_of_view(demo: Path) -> None:
    for path in (demo / "reference").glob("*.nii.gz"):
        mask = np.asarray(nib.load(path).dataobj)
        assert set(np.unique(mask)) == {0, *LABELS.values()}
        assert not np.pad(np.zeros(np.subtract(mask.shape, 2), bool), 1, constant_values=True)[mask > 0].any()


def test_grids_differ(demo: Path) -> None:
    affines = [nib.load(path).affine for path in sorted((demo / "studies").glob("*.nii.gz"))]
    oblique = [np.rad2deg(nib.affines.obliquity(affine)).max() > 4 for affine in affines]
    flipped = [nib.aff2axcodes(affine) != ("R", "A", "S") for affine in affines]
    assert 0 < sum(oblique) < len(affines)
    assert 0 < sum(flipped) < len(affines)
    assert len({tuple(np.round(nib.affines.voxel_sizes(affine), 2)) for affine in affines}) == len(affines)


def test_same_seed_same_bytes_whatever_the_count(demo: Path, tmp_path: Path) -> None:
    write_demo_studies(tmp_path / "same", count=2, labelled=1)
    write_demo_studies(tmp_path / "other", count=2, labelled=1, seed=1)
    for name in ("phantom_01.nii.gz", "phantom_02.nii.gz"):
        assert (tmp_path / "same" / name).read_bytes() == (demo / "studies" / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (demo / "studies" / name).read_bytes()


def test_complete_folder_is_left_alone(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    write_demo_studies(demo / "studies", reference=demo / "reference")
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


@pytest.mark.parametrize("survived", range(7))
def test_interrupted_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    def write(root: Path) -> None:
        write_demo_studies(root / "studies", count=2, labelled=1, reference=root / "reference")

    def replace(source: Path, target: Path) -> None:
        if len(done) == survived:
            raise KeyboardInterrupt
        done.append(target)
        os.rename(source, target)

    done: list[Path] = []
    write(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if survived < 6:
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "broken")
        else:
            write(tmp_path / "broken")
    whole, broken = contents(tmp_path / "whole"), contents(tmp_path / "broken")
    assert len(broken) == survived
    assert broken.items() <= whole.items()
    write(tmp_path / "broken")
    assert contents(tmp_path / "broken") == whole


@pytest.mark.parametrize("seed", range(4))
def test_same_anatomy_on_any_grid(seed: int) -> None:
    anatomy = draw_anatomy(np.random.default_rng(seed))
    for label, tolerance in ((LABELS["lung"], 0.01), (LABELS["tumour"], 0.05)):
        volumes, centres = [], []
        for grid in (PLAIN, OBLIQUE):
            _, mask = render(anatomy, grid, np.random.default_rng(0))
            volumes.append((mask == label).sum() * np.prod(grid.spacing))
            centres.append(grid.points()[:, mask.ravel() == label].mean(1))
        assert volumes[0] == pytest.approx(volumes[1], rel=tolerance)
        np.testing.assert_allclose(*centres, atol=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_tissue_is_told_apart_by_its_intensity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anatomy, grid = draw_anatomy(rng), draw_grid(rng)
    image, mask = render(anatomy, grid, rng)
    lung, tumour = (np.median(image[mask == value]) for value in LABELS.values())
    body = np.median(image[(mask == 0) & (image > -500)])
    assert lung < -600 < -50 < tumour < 150
    assert lung < body


@pytest.mark.parametrize("seed", range(20))
def test_tumour_lies_in_a_lung_beside_a_bronchus(seed: int) -> None:
    parts = draw_anatomy(np.random.default_rng(seed)).parts
    tumour = next(part.shape for part in parts if part.name == "tumour")
    centre = np.asarray(tumour.centre, np.float32)[:, None]
    assert 8 <= tumour.radius <= 20
    assert min(part.shape.distance(centre)[0] for part in parts if part.name == "lung") < -0.7 * tumour.radius
    assert min(part.shape.distance(centre)[0] for part in parts if part.name == "airway") < 1.1 * tumour.radius


def test_noise_is_the_only_thing_left_to_chance_in_rendering() -> None:
    anatomy, grid = draw_anatomy(np.random.default_rng(0)), draw_grid(np.random.default_rng(0))
    (first, mask), (second, same) = (render(anatomy, grid, np.random.default_rng(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(mask, same)
    difference = (first.astype(float) - second)[mask == LABELS["lung"]]
    assert difference.std() == pytest.approx(anatomy.noise_hu * np.sqrt(2), rel=0.05)


def test_answers_are_not_put_among_the_studies(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        write_demo_studies(tmp_path, reference=tmp_path / "answers")
    with pytest.raises(ValueError, match="labelled"):
        write_demo_studies(tmp_path, count=2, labelled=3)
    assert not list(tmp_path.iterdir())
