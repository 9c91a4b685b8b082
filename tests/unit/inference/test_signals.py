"""What the strategies choose by: counted over the whole study, and each part what its name says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_2D, make_volume, state_of, tiny_config
from torch import Tensor
from torch.nn import functional

from vqseg.active.uncertainty import mean_by_structure, mutual_information, predictive_entropy, share_of_classes
from vqseg.data.preparation import prepare_volume
from vqseg.data.reading import Volume
from vqseg.inference.predictor import Predictor
from vqseg.inference.signals import StudySignals
from vqseg.networks.build import build_network
from vqseg.networks.dropout import drop_channels
from vqseg.networks.vqseg import VQSeg

CPU = torch.device("cpu")
QUANTIZED: list[dict[str, Any]] = [
    {},
    TINY_2D,
    {"model.code_groups": None, "model.code_dim": 2},
    TINY_2D | {"model.shallow_skips": True},
]
quantized = pytest.mark.parametrize("overrides", QUANTIZED, ids=["3D", "2D", "3D-full-width", "2D-shallow-skips"])


def predictor_of(overrides: dict[str, Any]) -> Predictor:
    """An untrained network that calls voxels by every name."""
    torch.manual_seed(0)
    config = tiny_config(overrides)
    network = build_network(config)
    with torch.no_grad():
        network.segmentation.head.weight.mul_(20)  # type: ignore[union-attr,operator]
    return Predictor(network, config, CPU)


def study(shape: tuple[int, ...] = (20, 20, 20)) -> Volume:
    return make_volume(np.random.default_rng(0).normal(size=shape), np.diag([2.0, 2, 2, 1]))


def assert_equal(one: StudySignals, other: StudySignals) -> None:
    for name, value in dataclasses.asdict(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


@quantized
def test_usage_is_that_of_a_prediction(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides)
    found = predictor.signals(study())
    np.testing.assert_array_equal(found.usage, predictor.predict(study()).usage)
    assert found.usage.sum() > 0
    # A token is weighted by a probability.
    assert (found.foreground_usage <= found.usage + 1e-9).all()
    assert (found.foreground_usage > 0).any()


@quantized
def test_parts_of_a_study_of_one_window(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides | {"data.spacing": [2, 2, 2], "views.flip_axes": []})
    network, volume = predictor.network, study((8, 8, 8))
    assert isinstance(network, VQSeg)
    prepared = torch.from_numpy(np.ascontiguousarray(prepare_volume(volume, predictor.config.data)))
    axis = predictor.config.data.slice_axis
    window = prepared[None, None] if axis is None else prepared.movedim(axis, 0)[:, None]
    with torch.inference_mode():
        output = network(window)
    probability = output.logits.softmax(1)
    found = predictor.signals(volume)
    expected = mean_by_structure(predictive_entropy(probability), probability)
    np.testing.assert_allclose(found.entropy, expected, rtol=1e-4)
    np.testing.assert_allclose(
        found.class_entropy, share_of_classes(predictive_entropy(probability), probability), rtol=1e-4
    )
    # Each position of the coarsest map weighs as much as the foreground of its patch.
    maps = output.maps[-1]
    weight = functional.adaptive_avg_pool3d if maps.ndim == 5 else functional.adaptive_avg_pool2d
    weights = weight(probability[:, 1:].sum(1, keepdim=True), maps.shape[2:])
    expected = (maps * weights).transpose(0, 1).flatten(1).sum(1) / weights.sum()
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-6)
    predicted = torch.bincount(probability.argmax(1).flatten(), minlength=3)[1:]
    np.testing.assert_array_equal(found.foreground, predicted)
    assert found.foreground.any()


@quantized
def test_draws_disagree_and_only_where_codes_are_replaced(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides)
    assert isinstance(predictor.network, VQSeg)
    without = predictor.signals(study())
    assert np.isnan(without.disagreement).all()
    with_draws = predictor.signals(study(), draws=3)
    assert (with_draws.disagreement > 1e-4).all()
    # Drawing changes nothing else.
    assert_equal(dataclasses.replace(with_draws, disagreement=without.disagreement), without)
    predictor.network.qpm.rate = 0.0
    np.testing.assert_allclose(predictor.signals(study(), draws=3).disagreement, 0, atol=1e-6)


@quantized
def test_draws_of_a_network_that_is_perturbed_by_dropout_drop_channels(overrides: dict[str, Any]) -> None:
    """Each draw is an answer of the network as the training perturbs it."""
    dropout = overrides | {"perturbation.kind": "dropout", "views.flip_axes": [], "data.spacing": [2, 2, 2]}
    predictor, volume = predictor_of(dropout), study((8, 8, 8))
    found = predictor.signals(volume, draws=3)
    assert np.isnan(predictor.replacement_codes)
    image = torch.from_numpy(prepare_volume(volume, predictor.config.data))[None]
    batch = image.movedim(3, 0) if predictor.network.dims == 2 else image[None]
    generator = torch.Generator().manual_seed(0)
    rows = torch.ones(len(batch), dtype=torch.bool)

    def drop(maps: Sequence[Tensor]) -> list[Tensor]:
        return drop_channels(maps, rows, predictor.config.perturbation.dropout_rate, generator)

    with torch.inference_mode():
        probability = predictor.network(batch).logits.softmax(1)
        answers = [predictor.network(batch, drop=drop).logits.softmax(1) for _ in range(3)]
    expected = mean_by_structure(mutual_information(answers), probability)
    np.testing.assert_allclose(found.disagreement, expected, rtol=1e-4)
    assert (found.disagreement > 1e-4).all()
    never = predictor_of(dropout | {"perturbation.dropout_rate": 0})
    np.testing.assert_allclose(never.signals(volume, draws=3).disagreement, 0, atol=1e-6)


@quantized
def test_the_same_study_has_the_same_signals(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides)
    predictor.network.calibrate()  # as every training does
    before, random = state_of(predictor.network), torch.get_rng_state()
    one = predictor.signals(study(), draws=2)
    assert_equal(predictor.signals(study(), draws=2), one)
    other = predictor.signals(study(), 2, torch.Generator().manual_seed(5))
    assert (other.disagreement != one.disagreement).any()
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in state_of(predictor.network).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_encoder_runs_once_whatever_the_number_of_draws() -> None:
    predictor = predictor_of({})
    passes = []
    predictor.network.encoder.register_forward_hook(lambda *_: passes.append(1))
    predictor.signals(study())
    once = len(passes)
    predictor.signals(study(), draws=5)
    assert len(passes) == 2 * once


@quantized
def test_without_structures_every_token_and_position_counts_alike(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides | {"data.spacing": [2, 2, 2], "views.flip_axes": []})
    volume = study((8, 8, 8))
    knowing = predictor.signals(volume)
    predictor.segments = False
    found = predictor.signals(volume)
    np.testing.assert_array_equal(found.usage, knowing.usage)
    np.testing.assert_array_equal(found.foreground_usage, knowing.usage)
    prepared = torch.from_numpy(np.ascontiguousarray(prepare_volume(volume, predictor.config.data)))
    axis = predictor.config.data.slice_axis
    with torch.inference_mode():
        maps = predictor.network(prepared[None, None] if axis is None else prepared.movedim(axis, 0)[:, None]).maps[-1]
    np.testing.assert_allclose(found.features, maps.transpose(0, 1).flatten(1).mean(1), rtol=1e-4, atol=1e-6)
    assert not np.allclose(found.features, knowing.features)
    for unknown in (found.entropy, found.disagreement, found.class_entropy):
        assert np.isnan(unknown).all()
    assert not found.foreground.any()


def test_a_network_without_a_codebook_has_all_but_codes() -> None:
    predictor = predictor_of({"model.quantized": False})
    found = predictor.signals(study(), draws=2)
    assert not found.usage.any()
    assert not found.foreground_usage.any()
    assert np.isnan(found.disagreement).all()
    assert np.isfinite(found.entropy).all()
    assert np.isfinite(found.features).all()


@pytest.mark.parametrize("overrides", [{}, {"model.quantized": False}], ids=["quantised", "plain"])
def test_neither_windows_nor_padding_change_what_a_study_looks_like(overrides: dict[str, Any]) -> None:
    """A volume of one value has the same features whatever its size, and as many tokens as it has voxels for."""
    predictor = predictor_of(overrides | {"data.spacing": [2, 2, 2]})
    # The network's own borders matter less the fewer convolutions see them.
    with torch.no_grad():
        for module in predictor.network.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 3, 3):
                centre = module.weight[:, :, 1:2, 1:2, 1:2].clone()
                module.weight.zero_()
                module.weight[:, :, 1:2, 1:2, 1:2] = centre
    found = {
        shape: predictor.signals(make_volume(np.zeros(shape), np.diag([2.0, 2, 2, 1])))
        for shape in ((8, 8, 8), (24, 24, 24), (40, 8, 8), (40, 16, 4))
    }
    expected = found[8, 8, 8]
    for shape, signals in found.items():
        np.testing.assert_allclose(signals.features, expected.features, atol=1e-5)
        times = np.prod(shape) / 8**3
        assert signals.usage.sum() == pytest.approx(expected.usage.sum() * times, rel=0.01)
        assert signals.foreground_usage.sum() == pytest.approx(expected.foreground_usage.sum() * times, rel=0.01)


@quantized
def test_a_prediction_gives_the_signals_of_its_own_pass_when_asked(overrides: dict[str, Any]) -> None:
    predictor = predictor_of(overrides)
    assert predictor.predict(study()).signals is None
    found = predictor.predict(study(), with_signals=True).signals
    assert found is not None
    assert_equal(found, predictor.signals(study()))


@quantized
def test_an_image_prepared_before_takes_the_place_of_the_volume(overrides: dict[str, Any]) -> None:
    predictor, affine = predictor_of(overrides), np.diag([3.0, 2.5, 2, 1])
    volume = make_volume(study().array, affine)
    image = prepare_volume(volume, predictor.config.data)
    expected = predictor.predict(volume, with_signals=True)
    assert expected.signals is not None
    np.testing.assert_array_equal(predictor.predict(volume, image=image).mask, expected.mask)
    assert_equal(predictor.signals(volume, image=image), expected.signals)
    assert (predictor.predict(volume, image=-image).mask != expected.mask).any()
    assert (predictor.signals(volume, image=-image).features != expected.signals.features).any()
