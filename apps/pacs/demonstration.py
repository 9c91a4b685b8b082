#!/usr/bin/env python3
"""The demonstration studies as a hospital would have them: CT series, and a DICOM SEG for those that are labelled.

Usage: apps/pacs/demonstration.py --out DIR

Chest phantoms, drawn by a program: nobody's images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import SimpleITK as sitk
from pydicom.uid import CTImageStorage, generate_uid

from vqseg.data.dicom_seg import Origin, write_segmentation
from vqseg.data.phantom import LABELS, write_demo_studies
from vqseg.data.reading import read_grid, read_mask
from vqseg.data.studies import find_studies


def write_series(image: Path, patient: str, folder: Path) -> None:
    """Write a NIfTI volume as one CT series, a file a slice."""
    volume = sitk.ReadImage(str(image), sitk.sitkInt16)
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    direction = volume.GetDirection()
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(volume.GetDepth()):
        instance = generate_uid()
        tags = {
            "0008|0016": str(CTImageStorage),
            "0008|0018": instance,
            "0008|0020": "20260101",
            "0008|0030": "120000",
            "0008|0060": "CT",
            "0008|1030": "Chest phantom",
            "0008|103e": "Drawn by a program",
            "0010|0010": patient,
            "0010|0020": patient,
            "0018|0050": f"{volume.GetSpacing()[2]:.6g}",
            "0020|000d": study,
            "0020|000e": series,
            "0020|0013": str(number + 1),
            "0020|0032": _numbers(volume.TransformIndexToPhysicalPoint((0, 0, number))),
            # Of the rows and of the columns; the matrix of ITK holds the axes as its columns.
            "0020|0037": _numbers([direction[at] for at in (0, 3, 6, 1, 4, 7)]),
            "0020|0052": frame_of_reference,
            "0028|1052": "0",
            "0028|1053": "1",
        }
        plane = volume[:, :, number]
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number + 1:03d}.dcm"))
        writer.Execute(plane)


def _numbers(values: tuple[float, ...] | list[float]) -> str:
    return "\\".join(f"{value:.10g}" for value in values)


def write_demonstration(out: Path, count: int = 12) -> None:
    """Write folders `phantom_01` and so on with a series each, and `phantom_01_label.dcm` for the labelled ones."""
    with tempfile.TemporaryDirectory(prefix="vqseg-") as name:
        folder = Path(name)
        write_demo_studies(folder, count)
        for study in find_studies(folder, folder / "labels" / "final"):
            write_series(study.image, study.id, out / study.id)
            if study.label is not None:
                mask = read_mask(study.label, read_grid(study.image), LABELS)
                series, file = out / study.id, out / f"{study.id}_label.dcm"
                write_segmentation(mask, read_grid(series), series, LABELS, Origin("demonstration"), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    write_demonstration(parser.parse_args().out)


if __name__ == "__main__":
    main()
