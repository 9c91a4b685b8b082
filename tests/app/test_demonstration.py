"""What `scripts/serve` shows: *train* on the demonstration studies gives a model that finds lungs and tumour there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from vqseg.data.phantom import write_demo_studies
from vqseg.metrics import dice

CONF = {"preset": "demo_chest_ct", "score_seconds": "60"}
FLOOR = 0.8


@pytest.mark.long
def test_three_labelled_phantoms_are_enough_for_the_others(serve_app: Any, tmp_path: Path) -> None:
    studies, reference = tmp_path / "studies", tmp_path / "reference"
    write_demo_studies(studies, reference=reference)
    labelled = {path.name for path in (studies / "labels" / "final").glob("*.nii.gz")}
    unlabelled = sorted(path for path in studies.glob("*.nii.gz") if path.name not in labelled)
    assert (len(labelled), len(unlabelled)) == (3, 9)

    with serve_app(studies, tmp_path, CONF) as server:
        assert server.post("/train/vqseg").ok
        early = server.wait(lambda stats: (server.run / "models" / "live.json").exists(), 300)
        assert early["step"] < early["total_steps"] / 2
        assert server.infer("phantom_04", output="image").ok
        done = server.wait(lambda stats: stats["state"] in ("done", "failed"), 1800)
        assert done["state"] == "done", done
        scores = []
        for image in unlabelled:
            reply = server.infer(image.name.removesuffix(".nii.gz"), output="image")
            (tmp_path / image.name).write_bytes(reply.content)
            mask = np.asarray(nib.load(tmp_path / image.name).dataobj)
            truth = np.asarray(nib.load(reference / image.name).dataobj)
            scores.append([dice(mask, truth, value) for value in (1, 2)])
    lung, tumour = np.mean(scores, 0)
    assert lung > FLOOR, scores
    assert tumour > FLOOR, scores
