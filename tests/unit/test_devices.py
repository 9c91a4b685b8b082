"""A device that cannot be used is refused in words."""

from __future__ import annotations

import pytest
import torch

from vqseg.devices import choose_device, has_fast_bfloat16
from vqseg.errors import ConfigError


def test_known_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "cpu:x", "meta"])
def test_unusable_device_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        choose_device(name)


def test_precision_is_known_without_a_public_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(has_fast_bfloat16(torch.device("cpu")), bool)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is False


def test_what_the_processor_can_says_nothing_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_fast_bfloat16(torch.device("cpu"))
    assert not has_fast_bfloat16(torch.device("mps"))
