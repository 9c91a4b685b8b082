"""A model whose files are not what was published never serves; the one before it does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flip_bit
from workplaces import Workplace, noise

from vqseg.data.grid import Grid
from vqseg.data.reading import Volume
from vqseg.errors import ModelError

VOLUME = Volume(noise(1).astype(np.float32), Grid((16, 16, 16), np.eye(4)))
FLIPS = 60  # scripts/benchmark_faults flips a thousand


@pytest.fixture
def workplace(tmp_path: Path, app_module: Any) -> Workplace:
    """With two versions, the second one live."""
    workplace = Workplace(tmp_path, app_module)
    workplace.publish(1)
    workplace.publish(2)
    return workplace


def served(live: Any) -> str:
    return str(live.predict(VOLUME)[1].version)


def files_of(workplace: Workplace, version: str) -> list[Path]:
    return [workplace.run / "models" / version / name for name in ("model.safetensors", "manifest.json")]


def test_every_flipped_bit_is_found_before_the_model_serves(workplace: Workplace, app_module: Any) -> None:
    draw = random.Random(0)
    for number in range(FLIPS):
        file = files_of(workplace, "0002")[number % 2]
        whole = flip_bit(file, draw.randrange(8 * file.stat().st_size))
        live = app_module("live_model").LiveModel(workplace.run, "cpu")
        assert served(live) == "0001", file
        assert live.version().name == "0001"
        file.write_bytes(whole)
    assert served(app_module("live_model").LiveModel(workplace.run, "cpu")) == "0002"


def test_what_serves_goes_on_when_a_damaged_version_goes_live(workplace: Workplace) -> None:
    assert served(workplace.live) == "0002"
    workplace.publish(3)
    flip_bit(files_of(workplace, "0003")[0], 5000)
    assert served(workplace.live) == "0002"
    workplace.publish(4)
    assert served(workplace.live) == "0004"


def test_without_any_whole_version_the_reason_is_given(workplace: Workplace) -> None:
    for version in ("0001", "0002"):
        flip_bit(files_of(workplace, version)[0], 5000)
    with pytest.raises(ModelError, match="every published model is damaged"):
        served(workplace.live)


def test_with_a_damaged_pointer_the_newest_whole_version_serves_and_the_log_says_so(
    workplace: Workplace, app_module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (workplace.run / "models" / "live.json").write_bytes(bytes(60))
    assert served(workplace.live) == "0002"
    assert "live.json is damaged" in caplog.text
    flip_bit(files_of(workplace, "0002")[0], 5000)
    assert served(app_module("live_model").LiveModel(workplace.run, "cpu")) == "0001"
