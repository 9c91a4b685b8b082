"""The pool that scripts/benchmark_selection makes harder."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
from builders import stored, write_studies

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark_selection"


def test_a_share_of_the_pool_is_degraded_and_nothing_else(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "degraded"
    studies = write_studies(source, 14)
    split = {
        "labels": {"left": 1, "right": 2},
        "train": [s.id for s in studies[:10]],
        "val": [s.id for s in studies[10:]],
    }
    (source / "splits.json").write_text(json.dumps(split), encoding="utf-8")
    script = runpy.run_path(str(SCRIPT))
    script["degrade"](source, folder)
    changed = []
    for study in studies:
        (before, affine), (after, kept) = stored(study.image), stored(folder / "images" / study.image.name)
        np.testing.assert_array_equal(affine, kept)
        if not np.array_equal(before, after):
            changed.append(study.id)
            assert after.shape == before.shape
            assert np.isfinite(after).all()
            assert np.abs(after - before).mean() > 0.02 * before.std()
        assert study.label is not None
        assert (folder / "labels" / study.label.name).read_bytes() == study.label.read_bytes()
    assert len(changed) == round(script["DEGRADED_SHARE"] * 10)
    assert set(changed) <= set(split["train"])


def test_every_way_to_degrade_changes_an_image_and_keeps_its_shape() -> None:
    image = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    ways = runpy.run_path(str(SCRIPT))["DEGRADATIONS"]
    results = [way(image, np.random.default_rng(1)) for way in ways]
    for result in results:
        assert result.shape == image.shape
        assert np.corrcoef(result.ravel(), image.ravel())[0, 1] < 0.99
    inverted = results[0]
    assert np.corrcoef(inverted.ravel(), image.ravel())[0, 1] < -0.99
