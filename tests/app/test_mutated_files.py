"""Damaged images and labels, as disks, networks and bad exports make them: taken or refused in words, never a fault.

500 in the default run; `VQSEG_MUTATIONS=40` makes forty times as many.
"""

from __future__ import annotations

import gzip
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from builders import write_dicom
from costs import processor_seconds
from damage import mutated
from unharmed import Unharmed

TIMES = int(os.environ.get("VQSEG_MUTATIONS", "1"))
# By what they take: of a DICOM file much more is read.
COUNTS = {"label": 250 * TIMES, "NIfTI": 200 * TIMES, "DICOM": 50 * TIMES}
STUDY, OTHER = "case_00", "case_07"
# In which each is answered, of the processors. What hangs without working takes none of these, so the clock is bounded
# too: four times as long, for on a machine that others use it measures them as well.
SECONDS, CLOCK_SECONDS = 5, 20
LARGEST_MIB = 512  # of the server's memory, for files of kilobytes


def one_slice(folder: Path) -> bytes:
    array = np.random.default_rng(0).integers(-900, 300, (24, 20, 1)).astype(np.int16)
    write_dicom(folder / "series", array, (1, 0, 0), (0, 1, 0), (2.0, 2.0, 3.0))
    (file,) = (path for path in (folder / "series").iterdir() if path.is_file())
    return file.read_bytes()


def send(server: Any, kind: str, content: bytes, name: str) -> requests.Response:
    """As clients do: a label to be kept, or an image to be segmented."""
    begun, started = processor_seconds(server.process.pid), time.monotonic()
    if kind == "label":
        query, form = {"image": STUDY}, {"label": (name, content)}
        reply = requests.put(f"{server.url}/datastore/label", params=query, files=form, timeout=CLOCK_SECONDS)
    else:
        form = {"params": (None, "{}"), "file": (name, content)}
        reply = requests.post(
            f"{server.url}/infer/vqseg", params={"output": "image"}, files=form, timeout=CLOCK_SECONDS
        )
    # The timeout of requests ends a silent answer, not one that drips.
    assert time.monotonic() - started < CLOCK_SECONDS
    assert processor_seconds(server.process.pid) - begun < SECONDS
    return reply


@pytest.mark.parametrize("kind", ["label", "NIfTI", "DICOM"])
def test_a_damaged_file_is_taken_or_refused_in_words(trained: Any, tmp_path: Path, kind: str) -> None:
    packed = "labels/final/" if kind == "label" else ""
    whole = (
        one_slice(tmp_path)
        if kind == "DICOM"
        else gzip.decompress((trained.studies / f"{packed}{STUDY}.nii.gz").read_bytes())
    )
    draw, refused = random.Random(f"mutations of {kind}"), 0
    with Unharmed(trained, OTHER, LARGEST_MIB):
        for _ in range(COUNTS[kind]):
            content = mutated(whole, draw, 352 if kind != "DICOM" else 1500)
            name = "image.dcm" if kind == "DICOM" else "file.nii.gz"
            if kind != "DICOM" and draw.random() < 0.8:
                content = gzip.compress(content, 1)
            reply = send(trained, kind, content, name)
            assert reply.status_code < 500, reply.text
            if not reply.ok:
                refused += 1
                assert 0 < len(reply.json()["detail"]) < 1000
                assert "Traceback" not in reply.text
    assert refused > COUNTS[kind] / 4, "the mutations do too little"


@pytest.mark.parametrize("kind", ["label", "DICOM"])
@pytest.mark.parametrize("depth", [50, 200, 1000, 5000])
def test_sequences_in_sequences(trained: Any, tmp_path: Path, depth: int, kind: str) -> None:
    """7 kB of them were a RecursionError of the stock server."""
    undefined = struct.pack("<I", 0xFFFFFFFF)
    begin = b"\x08\x00\x40\x11SQ\x00\x00" + undefined + b"\xfe\xff\x00\xe0" + undefined
    end = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    whole = one_slice(tmp_path)
    meta = 132 + 12 + struct.unpack("<I", whole[140:144])[0]
    with Unharmed(trained, OTHER, LARGEST_MIB):
        reply = send(trained, kind, whole[:meta] + begin * depth + end * depth + whole[meta:], "image.dcm")
        assert reply.status_code < 500, reply.text
        assert reply.ok or reply.json()["detail"]
