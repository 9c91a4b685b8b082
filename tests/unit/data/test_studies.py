"""Which image, label and patient belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import write_dicom, write_nifti, write_studies

from vqseg.data.studies import SplitFile, Study, find_studies, label_names, patient_of, read_split, study_id
from vqseg.errors import ConfigError, DataError


def studies_named(*names: str) -> list[Study]:
    return [Study(name, Path(f"{name}.nii.gz")) for name in names]


def test_images_are_found_with_their_labels(tmp_path: Path) -> None:
    written = write_studies(tmp_path, 3, labelled=2)
    write_dicom(tmp_path / "images" / "series", np.zeros((3, 3, 2), np.int16), (1, 0, 0), (0, 1, 0), (1, 1, 1))
    for name in ("labels.json", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / "images" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "images" / "labels").mkdir()
    found = find_studies(tmp_path / "images", tmp_path / "labels")
    assert found == [*written, Study("series", tmp_path / "images" / "series")]
    assert all(study.label is None for study in find_studies(tmp_path / "images"))


def test_compressed_and_plain_files_may_be_mixed(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "i" / "a.nii", np.ones((2, 2, 2), np.float32))
    label = write_nifti(tmp_path / "l" / "a.nii.gz", np.ones((2, 2, 2), np.uint8))
    assert find_studies(tmp_path / "i", tmp_path / "l") == [Study("a", image, label)]


def test_folders_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        find_studies(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        find_studies(tmp_path / "nowhere")
    write_nifti(tmp_path / "a.nii", np.ones((2, 2, 2), np.float32))
    with pytest.raises(DataError, match="no labels"):
        find_studies(tmp_path, tmp_path / "no labels")


def test_one_id_is_one_study(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, np.ones((2, 2, 2), np.float32))
    with pytest.raises(DataError, match=r"a\.nii"):
        find_studies(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.nii.gz", "a"), ("a.NII.GZ", "a"), ("a.b.nii", "a.b"), ("series.1", "series.1")]
)
def test_study_id(name: str, expected: str) -> None:
    assert study_id(Path("folder") / name) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("patient001_ED", "patient001_ES"),
        ("patient001_ED_0000", "patient001_ES_0000"),
        ("sub-07_ses-1_T1w", "sub-07_ses-2_T1w"),
        ("p3_baseline", "p3_followup"),
        ("case_12_0000", "case_12"),
    ],
)
def test_volumes_of_a_patient_are_recognised(one: str, other: str) -> None:
    assert patient_of(one) == patient_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("case_1", "case_2"), ("patient001_ED", "patient002_ED"), ("sub-07_T1w", "sub-08_T1w"), ("lung_a", "lung_b")],
)
def test_patients_are_not_thrown_together(one: str, other: str) -> None:
    assert patient_of(one) != patient_of(other)


def test_pattern_names_the_patient() -> None:
    assert patient_of("2024-site3-p17-scan2", r"p\d+") == "p17"
    assert patient_of("2024-site3-p17-scan2", r"site\d-(p\d+)") == "p17"
    assert patient_of("no match", r"p\d+") == "no match"
    assert isinstance(patient_of("b12", r"(a)?b(\d+)"), str)
    with pytest.raises(ConfigError, match=r"data\.patient_pattern"):
        patient_of("a", "(")


def test_members_are_whole_names_or_stand_before_an_underscore() -> None:
    split = SplitFile({}, {"train": ["p1", "p22_ED"]})
    studies = studies_named("p1", "p1_ED", "p12_ED", "p22_ED", "p22_ES", "xp1")
    assert [study.id for study in split.members("train", studies)] == ["p1", "p1_ED", "p22_ED"]
    with pytest.raises(DataError, match=r"'val'.*train"):
        split.members("val", studies)


def test_split_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"labels": {"a": 1}, "train": ["x", 7], "val": []}), encoding="utf-8")
    assert read_split(path) == SplitFile({"a": 1}, {"train": ["x", "7"], "val": []})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"labels": 3}', '{"labels": {"a": "b"}}', '{"labels": {}, "train": 3}']
)
def test_bad_split_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"split\.json"):
        read_split(path)
    with pytest.raises(DataError, match=r"nowhere\.json"):
        read_split(tmp_path / "nowhere.json")


def test_label_names_from_file_or_values(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 2, labelled=1)
    assert label_names(tmp_path / "images", studies) == {"label_1": 1, "label_2": 2}
    assert label_names(tmp_path / "images", studies[1:]) == {}
    (tmp_path / "images" / "labels.json").write_text('{"lung": 1, "tumour": 2}', encoding="utf-8")
    assert label_names(tmp_path / "images", studies) == {"lung": 1, "tumour": 2}


@pytest.mark.parametrize("text", ['{"lung": "a"}', '{"lung": [1]}', '{"lung": null}', "{"])
def test_bad_label_names_are_an_error_in_words(text: str, tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 1)
    (tmp_path / "images" / "labels.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.json"):
        label_names(tmp_path / "images", studies)


def test_one_bad_mask_does_not_hide_the_structures_of_the_others(tmp_path: Path) -> None:
    studies = write_studies(tmp_path, 3)
    assert studies[0].label is not None
    studies[0].label.write_bytes(b"no mask")
    assert label_names(tmp_path / "images", studies) == {"label_1": 1, "label_2": 2}
