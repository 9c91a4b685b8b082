"""The estimate of memory: no less than what is measured, and not many times as much."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import TINY_2D, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from vqseg.config import Model
from vqseg.inference.memory import inference_bytes

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (128, 128, 64)
# In a process of its own, whose peak nothing else raises; Linux forgets a former peak when asked to.
MEASURE = """
import sys, json, numpy as np, torch
torch.set_num_threads(1)
from builders import make_volume, tiny_config, tiny_network
from vqseg.inference.predictor import Predictor
overrides, shape, affine = json.loads(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
config = tiny_config(overrides)
predictor = Predictor(tiny_network(config), config, torch.device("cpu"))
random = np.random.default_rng(0)
predictor.predict(make_volume(random.normal(size=(40, 40, 40)), np.diag(affine)), with_signals=True)
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
voxels = random.random(shape, dtype=np.float32)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS") - voxels.nbytes
predictor.predict(make_volume(voxels, np.diag(affine)), with_signals=True)
print(status("VmHWM") - before)
"""
MANY = {f"structure {value}": value for value in range(1, 9)}
# Two levels of two channels, for it is the volume's memory that is measured.
NARROW = {"data.spacing": (1, 1, 1), "model.channels": (2, 2), "model.code_dim": 2}
# The network of the settings as they come.
WIDE = {"data.spacing": (1, 1, 1)} | {f"model.{key}": value for key, value in Model().model_dump(mode="json").items()}
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "many structures": ({**NARROW, "data.patch_size": (64, 64, 64), "data.labels": MANY}, 1.0),
    "resampled": ({**NARROW, "data.patch_size": (64, 64, 32)}, 0.5),
    "default network": ({**WIDE, "data.patch_size": (64, 64, 64)}, 1.0),
    "2D": ({**NARROW, **TINY_2D, "data.patch_size": (128, 128), "data.labels": MANY}, 1.0),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "case", [case if case == "resampled" else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_no_less_than_what_is_measured(case: str) -> None:
    overrides, spacing = CASES[case]
    affine = [spacing, spacing, spacing, 1]
    arguments = [json.dumps(part) for part in (overrides, SHAPE, affine)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *arguments],
        env={"PYTHONPATH": f"{ROOT / 'lib'}:{ROOT / 'tests' / 'unit'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    measured, estimated = int(done.stdout), inference_bytes(SHAPE, (spacing,) * 3, tiny_config(overrides))
    print(f"{case}: measured {measured / 2**20:.0f} MiB, estimated {estimated / 2**20:.0f} MiB")
    assert measured <= estimated <= 4 * measured


@given(st.tuples(*[st.integers(1, 600)] * 3), st.tuples(*[st.floats(0.3, 6)] * 3), st.integers(0, 2))
def test_grows_with_the_image(shape: tuple[int, ...], spacing: tuple[float, ...], axis: int) -> None:
    config = tiny_config({})
    longer = tuple(2 * size if place == axis else size for place, size in enumerate(shape))
    one, other = (inference_bytes(found, spacing, config) for found in (shape, longer))
    assert math.prod(shape) * 4 < one <= other
