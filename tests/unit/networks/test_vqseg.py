import pytest
import torch

from vqseg.config import load_config
from vqseg.networks.vqseg import VQSeg


def make_network(dims: int, groups: int | None, **model) -> VQSeg:
    torch.manual_seed(0)
    config = load_config(
        None,
        {
            "data.labels": {"a": 1, "b": 2},
            "data.spatial_dims": dims,
            "model.channels": [4, 8, 8],
            "model.first_quantized_level": 1,
            "model.shallow_skips": False,
            "model.codebook_size": 32,
            "model.code_dim": 4,
            "model.code_groups": groups,
            **{f"model.{name}": value for name, value in model.items()},
        },
    )
    return VQSeg(config).eval()


@pytest.fixture(params=[(2, 1), (3, 1), (2, 3), (3, None)], ids=["2d", "3d", "2d-three-codes", "3d-full-width"])
def network(request) -> VQSeg:
    return make_network(*request.param)


def image(network: VQSeg, seed: int = 0) -> torch.Tensor:
    size = [2, 1, *[16] * network.dims]
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_shapes(network):
    output = network(image(network), reconstruct=2)
    spatial = [16] * network.dims
    tokens = sum(
        (8 // 2**level) ** network.dims * channels // network.code_dim
        for level, channels in enumerate(network.quantized_channels)
    )
    assert list(output.logits.shape) == [2, 3, *spatial]
    assert list(output.image.shape) == [2, 1, *spatial]
    assert list(output.indices.shape) == [2, tokens]
    assert list(output.tokens.shape) == list(output.codes.shape) == [2, tokens, 4]
    assert network(image(network)).image is None


def test_qpm_at_rate_07_changes_the_logits(network):
    generator = torch.Generator().manual_seed(0)
    network.qpm.rate = 0.7
    clean = network(image(network)).logits
    perturbed = network(image(network), lambda i, c: network.qpm(i, c, generator)).logits
    assert (clean - perturbed).abs().mean() > 0.01 * clean.abs().mean()


def all_three(indices: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.full_like(indices, 3)


def test_nothing_reaches_the_decoders_but_the_codes(network):
    """When every index is replaced by a fixed one, two different images give the very same result."""
    with torch.no_grad():
        results = [network(image(network, seed), all_three, reconstruct=2) for seed in (1, 2)]
    # A token whose nearest code is 3 already keeps its straight-through value, which equals the code up to rounding.
    torch.testing.assert_close(results[0].logits, results[1].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[0].image, results[1].image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("first_level", [1, 2])
def test_shallow_levels_reach_the_segmentation_but_never_the_image_decoder(dims, first_level):
    network = make_network(dims, None, shallow_skips=True, first_quantized_level=first_level)
    with torch.no_grad():
        results = [network(image(network, seed), all_three, reconstruct=2) for seed in (1, 2)]
    assert (results[0].logits - results[1].logits).abs().mean() > 0.01
    torch.testing.assert_close(results[0].image, results[1].image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("shallow_skips", "seen"), [(False, [8, 8]), (True, [4, 8, 8])])
def test_dropout_acts_on_every_map_the_segmentation_decoder_sees(shallow_skips, seen):
    network, shapes = make_network(2, None, shallow_skips=shallow_skips), []

    def drop(maps):
        shapes.append([features.shape[1] for features in maps])
        return [torch.zeros_like(features) for features in maps]

    with torch.no_grad():
        results = [network(image(network, seed), drop=drop, reconstruct=2) for seed in (1, 2)]
    torch.testing.assert_close(results[0].logits, results[1].logits, rtol=0, atol=0)
    torch.testing.assert_close(results[0].image, results[1].image, rtol=0, atol=0)
    assert shapes == [seen, seen]


def test_a_replaced_code_gives_its_token_no_gradient(network):
    pixels = image(network).requires_grad_()
    every = network(pixels, lambda indices, codebook: (indices + 1) % len(codebook)).logits.sum()
    assert torch.autograd.grad(every, pixels, allow_unused=True, materialize_grads=True)[0].abs().sum() == 0
    none = network(pixels, lambda indices, codebook: indices).logits.square().sum()
    assert torch.autograd.grad(none, pixels)[0].abs().sum() > 0


def test_evaluation_leaves_the_network_as_it_is(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        network(image(network), reconstruct=2)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_one_forward_pass_projects_the_codebook_once(network):
    calls = []
    network.quantizer.map.register_forward_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(0)
    network.train()(image(network), lambda i, c: network.qpm(i, c, generator), reconstruct=2)
    assert len(calls) == 1
