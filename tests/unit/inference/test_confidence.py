"""How sure a prediction is, and how far its tokens are from the codes: read off the pass that makes the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_2D, make_volume, tiny_config, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from vqseg.config import Config
from vqseg.data.preparation import prepare_volume
from vqseg.data.reading import Volume
from vqseg.inference.confidence import confidence_of
from vqseg.inference.predictor import Predictor
from vqseg.inference.windows import slide
from vqseg.networks.build import build_network

CPU = torch.device("cpu")
both = pytest.mark.parametrize("overrides", [{}, TINY_2D], ids=["3D", "2D"])


def probabilities(classes: int, shape: tuple[int, ...], seed: int, sharpness: float = 3.0) -> torch.Tensor:
    return (sharpness * torch.randn(1, classes, *shape, generator=torch.Generator().manual_seed(seed))).softmax(1)


def names(classes: int) -> list[str]:
    return [f"structure {value}" for value in range(1, classes)]


def study(shape: tuple[int, ...] = (20, 20, 20)) -> Volume:
    return make_volume(np.random.default_rng(0).normal(size=shape), np.diag([2.0, 2, 2, 1]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 6), st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 99), st.sampled_from([0.0, 0.01, 3.0, 200.0])
)
def test_it_is_the_mean_of_what_is_predicted(classes: int, shape: tuple[int, ...], seed: int, sharpness: float) -> None:
    probability = probabilities(classes, shape, seed, sharpness)
    predicted, largest = probability.argmax(1).numpy(), probability.amax(1).double().numpy()
    found = confidence_of(probability, names(classes))
    for value, (name, mean) in enumerate(found.by_structure.items(), 1):
        assert name == f"structure {value}"
        here = predicted == value
        assert mean == (pytest.approx(largest[here].mean()) if here.any() else None)
    expected = largest[predicted > 0].mean() if (predicted > 0).any() else None
    assert found.mean == (expected and pytest.approx(expected))
    for mean in (found.mean, *found.by_structure.values()):
        assert mean is None or 1 / classes <= mean <= 1


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 19)] * 3), st.tuples(*[st.sampled_from([2, 4, 8])] * 3), st.integers(0, 99))
def test_it_does_not_depend_on_how_a_volume_is_cut(shape: tuple[int, ...], window: tuple[int, ...], seed: int) -> None:
    # A network that sees one voxel at a time says the same of it in every window.
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))

    def look(seen: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.cat([seen, -seen, seen.square()], 1).softmax(1),)

    (blended,) = slide(image, window, look, at_a_time=2, outside=0.0, device=CPU)
    (whole,) = look(image, image)
    one, other = confidence_of(blended, names(3)), confidence_of(whole, names(3))
    assert one.mean == (other.mean and pytest.approx(other.mean, abs=1e-4))
    assert one.by_structure == pytest.approx(other.by_structure, abs=1e-4)


def test_what_is_not_a_number_is_not_known() -> None:
    found = confidence_of(torch.full((1, 3, 2, 2), torch.nan), names(3))
    assert found.mean is None
    assert set(found.by_structure.values()) == {None}


@both
def test_a_prediction_says_it_by_name_without_a_second_pass(overrides: dict[str, Any]) -> None:
    config = tiny_config(overrides)
    predictor = Predictor(tiny_network(config), config, CPU)
    passes: list[int] = []
    predictor.network.encoder.register_forward_hook(lambda *_: passes.append(1))
    predictor.usage(study())
    once = len(passes)
    found = predictor.predict(study())
    assert len(passes) == 2 * once
    assert set(found.confidence.by_structure) == set(predictor.labels)
    present = [name for name, mean in found.confidence.by_structure.items() if mean is not None]
    assert present == [name for name, value in predictor.labels.items() if (found.mask == value).any()]
    assert present
    assert found.codebook_distance is not None
    assert found.codebook_distance > 0


def with_codes_of(config: Config, volume: Volume) -> Predictor:
    """A network whose codes are the tokens of `volume`, which is one window."""
    image = torch.from_numpy(prepare_volume(volume, config.data))[None, None]
    with torch.inference_mode():
        tokens = tiny_network(config).encode(image).tokens[0]
    wide = tiny_config({"model.codebook_size": len(tokens)})
    network, source = tiny_network(wide), tiny_network(config)
    others = {name: value for name, value in source.state_dict().items() if not name.startswith("quantizer.")}
    network.load_state_dict(others, strict=False)
    with torch.no_grad():
        network.quantizer.table.copy_(tokens)
        network.quantizer.map.weight.copy_(torch.eye(len(network.quantizer.map.weight)))
    return Predictor(network, wide, CPU)


def test_tokens_that_are_codes_are_at_no_distance() -> None:
    volume = study((8, 8, 8))
    predictor = with_codes_of(tiny_config(), volume)
    assert predictor.predict(volume).codebook_distance == pytest.approx(0, abs=1e-6)
    other = make_volume(np.random.default_rng(1).normal(size=(8, 8, 8)), np.diag([2.0, 2, 2, 1]))
    assert predictor.predict(other).codebook_distance > 0.01


@both
def test_codes_without_a_length_are_a_token_away(overrides: dict[str, Any]) -> None:
    config = tiny_config(overrides)
    network = tiny_network(config)
    with torch.no_grad():
        network.quantizer.table.zero_()
    assert Predictor(network, config, CPU).predict(study()).codebook_distance == pytest.approx(1, abs=1e-3)


def test_a_network_without_a_codebook_has_no_distance() -> None:
    config = tiny_config({"model.quantized": False})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(config)
    found = Predictor(network, config, CPU).predict(study())
    assert found.codebook_distance is None
    assert found.confidence.mean is not None
