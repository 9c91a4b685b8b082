"""The foundation model's folder says what it is and how it sees; a bad one ends in words."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    TINY_2D,
    TINY_FOUNDATION,
    cut_off_from_the_hub,
    foundation_folder,
    make_affine,
    make_volume,
    tiny_config,
    tiny_network,
    write_studies,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqseg.config import Config, DINOv2
from vqseg.data.grid import Grid
from vqseg.data.plan import plan
from vqseg.errors import ConfigError
from vqseg.inference.predictor import Predictor
from vqseg.networks.decoders import DPTDecoder
from vqseg.networks.encoders import DINOv2Encoder
from vqseg.networks.foundation import FeatureAdapter, FoundationModel, load_backbone_weights, read_architecture
from vqseg.networks.vqseg import VQSeg
from vqseg.store import ModelStore
from vqseg.torchvision_schemas import import_transformers
from vqseg.training.run import train

CPU = torch.device("cpu")
quick = settings(max_examples=15, deadline=None)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off_from_the_hub(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foundation_folder(tmp_path_factory.mktemp("foundation"))


def slices_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def features_by_hand(folder: Path, slices: Tensor, grid: tuple[int, int]) -> Tensor:
    """What transformers' own processor and model make of the slices on a grid of patches."""
    transformers = import_transformers()
    model = transformers.AutoModel.from_pretrained(folder)
    patch = model.config.patch_size
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(
        list(slices[:, None].expand(-1, 3, -1, -1)),
        size={"height": grid[0] * patch, "width": grid[1] * patch},
        resample=2,  # bilinear
        do_center_crop=False,
        do_rescale=False,
        return_tensors="pt",
        input_data_format="channels_first",
    )["pixel_values"]
    leading = 1 + getattr(model.config, "num_register_tokens", 0)
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state[:, leading:]
    return tokens.transpose(1, 2).reshape(len(slices), -1, *grid)


ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"patch_size": 8, "hidden_size": 24, "num_attention_heads": 3},
    {"mean": (0.1, 0.2, 0.9), "std": (1.0, 0.5, 2.0)},
    {"kind": "Dinov2WithRegisters"},
    {"kind": "Dinov2WithRegisters", "num_register_tokens": 2, "patch_size": 8},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("shape", [(56, 56), (40, 30), (9, 70)], ids=str)
def test_features_are_those_of_the_model_for_the_patches(
    architecture: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    folder = foundation_folder(tmp_path, **architecture)
    model = FoundationModel.load(str(folder), CPU)
    slices, size = slices_of(3, *shape), 56
    longer = max(shape)
    grid = (
        max(1, round(shape[0] * size / longer / model.patch)),
        max(1, round(shape[1] * size / longer / model.patch)),
    )
    expected = features_by_hand(folder, slices, grid)
    assert model.patch == architecture.get("patch_size", 14)
    assert model.channels == expected.shape[1] == architecture.get("hidden_size", 16)
    torch.testing.assert_close(model.features(slices, size), expected, atol=1e-4, rtol=1e-4)


def test_normalisation_is_the_folders(tmp_path: Path) -> None:
    """Other statistics give other features, and images scaled alike give the same ones."""
    slices = slices_of(1, 56, 56)
    ours = FoundationModel.load(str(foundation_folder(tmp_path / "a", mean=(0.5,) * 3, std=(0.5,) * 3)), CPU)
    other = FoundationModel.load(str(foundation_folder(tmp_path / "b", mean=(0.0,) * 3, std=(1.0,) * 3)), CPU)
    same_pixels = other.features((slices - 0.5) / 0.5, 56)
    torch.testing.assert_close(ours.features(slices, 56), same_pixels, atol=1e-4, rtol=1e-4)
    assert (ours.features(slices, 56) - other.features(slices, 56)).abs().mean() > 0.01


def test_foundation_model_is_never_trained(folder: Path) -> None:
    model = FoundationModel.load(str(folder), CPU)
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not model.features(slices_of(1, 56, 56).requires_grad_(), 56).requires_grad


def test_slices_do_not_see_each_other(folder: Path) -> None:
    model = FoundationModel.load(str(folder), CPU)
    slices = slices_of(4, 30, 40)
    alone = torch.cat([model.features(one[None], 56) for one in slices])
    torch.testing.assert_close(model.features(slices, 56), alone, atol=1e-5, rtol=1e-5)


class Trap:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def pickled_weights(folder: Path) -> None:
    """Weights that could be loaded, in a format that could run anything."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_trap(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "trap": Trap(folder / "sprung")}, folder / "pytorch_model.bin")
    with (folder / "pytorch_model.bin").open("rb") as file, pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(file, weights_only=True)  # the trap is one


def truncated(name: str) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return truncate


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def changed(name: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text(encoding="utf-8")) | fields))

    return change


def weights_of_something_else(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {f"else.{name}": value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def one_weight_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.2.attention.attention.query.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def own_code(folder: Path) -> None:
    """A model of an unknown type that brings its code along."""
    (folder / "custom.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n", encoding="utf-8")
    classes = {"AutoConfig": "custom.CustomConfig", "AutoModel": "custom.CustomModel"}
    changed("config.json", model_type="custom", auto_map=classes)(folder)


def own_code_of_the_processor(folder: Path) -> None:
    (folder / "custom.py").write_text(f"open({str(folder / 'sprung')!r}, 'w').close()\n", encoding="utf-8")
    classes = {"AutoImageProcessor": "custom.CustomProcessor"}
    changed("preprocessor_config.json", image_processor_type="CustomProcessor", auto_map=classes)(folder)


UNUSABLE_WEIGHTS: dict[str, Callable[[Path], None]] = {
    "no weights": without("model.safetensors"),
    "truncated weights": truncated("model.safetensors"),
    "pickled weights": pickled_weights,
    "pickled trap": pickled_trap,
    "weights of another size": changed("config.json", hidden_size=32),
    "weights of something else": weights_of_something_else,
    "one weight missing": one_weight_missing,
}
UNUSABLE_CONFIG: dict[str, Callable[[Path], None]] = {
    "nothing": lambda folder: shutil.rmtree(folder),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
    "no config": without("config.json"),
    "truncated config": truncated("config.json"),
    "unknown type": changed("config.json", model_type="nothing like this"),
    "own code": own_code,
}
UNUSABLE_PROCESSOR: dict[str, Callable[[Path], None]] = {
    "no processor": without("preprocessor_config.json"),
    "truncated processor": truncated("preprocessor_config.json"),
    "own code of the processor": own_code_of_the_processor,
    "no mean": changed("preprocessor_config.json", image_mean=None),
}


def spoilt(tmp_path: Path, spoil: Callable[[Path], None]) -> Path:
    folder = foundation_folder(tmp_path / "model")
    spoil(folder)
    return folder


def say_yes(monkeypatch: pytest.MonkeyPatch, copies: Path) -> list[str]:
    """Whoever is asked whether to run the code of a model answers yes; returns the questions.

    transformers copies such code before it runs it: into `copies` here, and not into the home.
    """
    questions: list[str] = []
    import_transformers()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(copies))
    monkeypatch.setattr("sys.path", [*sys.path])

    def answer(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return questions


@pytest.mark.parametrize("fault", [*UNUSABLE_CONFIG, *UNUSABLE_WEIGHTS, *UNUSABLE_PROCESSOR])
def test_unusable_folder_is_named_with_what_to_do(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    questions = say_yes(monkeypatch, tmp_path / "copies")
    folder = spoilt(tmp_path, (UNUSABLE_CONFIG | UNUSABLE_WEIGHTS | UNUSABLE_PROCESSOR)[fault])
    with pytest.raises(ConfigError, match="vqseg fetch-foundation") as caught:
        FoundationModel.load(str(folder), CPU)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "sprung").exists(), "it ran what it read"
    assert questions == []


@pytest.mark.parametrize("fault", UNUSABLE_CONFIG)
def test_architecture_of_an_unusable_folder(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = say_yes(monkeypatch, tmp_path / "copies")
    folder = spoilt(tmp_path, UNUSABLE_CONFIG[fault])
    with pytest.raises(ConfigError, match="vqseg fetch-foundation"):
        read_architecture(str(folder))
    assert not (folder / "sprung").exists(), "it ran what it read"
    assert questions == []


@pytest.mark.parametrize("fault", UNUSABLE_WEIGHTS)
def test_backbone_weights_of_an_unusable_folder(fault: str, tmp_path: Path) -> None:
    encoder = DINOv2Encoder(DINOv2(**TINY_FOUNDATION))
    folder = spoilt(tmp_path, UNUSABLE_WEIGHTS[fault])
    with pytest.raises(ConfigError, match="vqseg fetch-foundation"):
        load_backbone_weights(encoder, str(folder))
    assert not (folder / "sprung").exists(), "it ran what it read"


@pytest.mark.parametrize("name", ["nobody/has-this-model", "no such model", "", "../somewhere", "none/", "a/b/c"])
def test_unknown_name_is_told_how_to_fetch(name: str) -> None:
    for use in (lambda: FoundationModel.load(name, CPU), lambda: read_architecture(name)):
        with pytest.raises(ConfigError, match="vqseg fetch-foundation"):
            use()


@pytest.mark.parametrize("kind", ["ResNetConfig", "BertConfig", "CLIPConfig"])
def test_model_without_patches_is_refused(kind: str, tmp_path: Path) -> None:
    getattr(import_transformers(), kind)().save_pretrained(tmp_path)
    for use in (lambda: FoundationModel.load(str(tmp_path), CPU), lambda: read_architecture(str(tmp_path))):
        with pytest.raises(ConfigError, match="DINOv2-like") as caught:
            use()
        assert str(tmp_path) in str(caught.value)


OTHER_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", {"intermediate_size": 32}),
    "Swin": (
        "Swin",
        {"num_attention_heads": [1, 2], "num_hidden_layers": 2, "depths": [1, 1], "embed_dim": 8, "window_size": 2},
    ),
}


@pytest.mark.parametrize("name", OTHER_TRANSFORMERS)
def test_other_transformers_give_features_of_patches_or_are_refused(name: str, tmp_path: Path) -> None:
    """What is accepted works for images of any shape."""
    kind, architecture = OTHER_TRANSFORMERS[name]
    folder = foundation_folder(tmp_path, kind=kind, **architecture)
    try:
        model = FoundationModel.load(str(folder), CPU)
    except ConfigError:
        return
    for shape in ((56, 56), (56, 28), (112, 112)):
        features = model.features(slices_of(2, *shape), 56)
        long = 56 // model.patch
        assert features.shape == (2, model.channels, long, round(long * shape[1] / shape[0]))


@pytest.mark.parametrize("dims", [2, 3])
def test_adapter_gives_the_foundation_models_channels_on_any_grid(dims: int) -> None:
    config = tiny_config((TINY_2D if dims == 2 else {}) | {"model.channels": (4, 8, 8)})
    network = tiny_network(config)
    maps = network(torch.zeros(2, 1, *[8] * dims)).maps
    adapter = FeatureAdapter(config, 10)
    for grid in ((1, 3, 2)[:dims], (4, 4, 4)[:dims], (7, 5, 9)[:dims]):
        assert adapter(maps, grid).shape == (2, 10, *grid)


@pytest.mark.parametrize("dims", [2, 3])
def test_adapter_is_one_linear_map_of_all_levels_at_every_position(dims: int) -> None:
    config = tiny_config((TINY_2D if dims == 2 else {}) | {"model.channels": (4, 8, 8)})
    adapter = FeatureAdapter(config, 10)
    generator = torch.Generator().manual_seed(0)
    levels = tiny_network(config)(torch.zeros(1, 1, *[8] * dims)).maps
    assert len(levels) == 2
    vectors = [torch.randn(2, level.shape[1], generator=generator) for level in levels]
    everywhere = [
        vector.view(2, -1, *[1] * dims).expand(-1, -1, *level.shape[2:])
        for vector, level in zip(vectors, levels, strict=True)
    ]
    weight = adapter.convolution.weight.flatten(1)
    expected = torch.cat(vectors, 1) @ weight.T + adapter.convolution.bias
    found = adapter(everywhere, [3] * dims)
    torch.testing.assert_close(found, expected.view(2, -1, *[1] * dims).expand_as(found), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"patch_size": 8, "image_size": 40}, {"num_hidden_layers": 6}, {"use_swiglu_ffn": True}, {"num_channels": 1}],
    ids=str,
)
def test_architecture_is_the_folders(overrides: dict[str, Any], tmp_path: Path) -> None:
    expected = DINOv2(**TINY_FOUNDATION | overrides)
    assert read_architecture(str(foundation_folder(tmp_path, **overrides))) == expected


@pytest.mark.parametrize("kind", ["Dinov2WithRegisters", "ViT"])
def test_architecture_of_another_type_is_refused(kind: str, tmp_path: Path) -> None:
    folder = foundation_folder(tmp_path, kind=kind)
    with pytest.raises(ConfigError, match="a DINOv2-like one is needed here \\(dinov2\\)"):
        read_architecture(str(folder))


ENCODERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3, 4]),
    ({"num_hidden_layers": 8}, [2, 4, 6, 8]),
    ({"num_hidden_layers": 6, "patch_size": 8}, [1, 3, 4, 6]),
    ({"use_swiglu_ffn": True}, [1, 2, 3, 4]),
]


@pytest.mark.parametrize(("architecture", "layers"), ENCODERS, ids=str)
@pytest.mark.parametrize("grid", [(4, 4), (1, 2), (5, 3)])
def test_pretrained_encoder_gives_the_features_of_transformers(
    architecture: dict[str, Any], layers: list[int], grid: tuple[int, int], tmp_path: Path
) -> None:
    """Also for images of another size than the position embeddings were learnt for."""
    folder = foundation_folder(tmp_path, **architecture)
    encoder = DINOv2Encoder(read_architecture(str(folder)))
    load_backbone_weights(encoder, str(folder))
    assert len(encoder.channels) == 4
    need_the_same_features(encoder, folder, layers, grid)


# What DINOv2's own models have in common, so that the settings do not name it.
UNUSUAL: list[dict[str, Any]] = [{"layer_norm_eps": 0.1}, {"hidden_act": "relu"}, {"qkv_bias": False}]


@pytest.mark.parametrize("architecture", UNUSUAL, ids=str)
def test_pretrained_encoder_of_an_unusual_folder_gives_its_features_or_is_refused(
    architecture: dict[str, Any], tmp_path: Path
) -> None:
    folder = foundation_folder(tmp_path, **architecture)
    try:
        encoder = DINOv2Encoder(read_architecture(str(folder)))
        load_backbone_weights(encoder, str(folder))
    except ConfigError:
        return
    need_the_same_features(encoder, folder, [1, 2, 3, 4], (4, 4))


def need_the_same_features(encoder: DINOv2Encoder, folder: Path, layers: list[int], grid: tuple[int, int]) -> None:
    image = slices_of(2, 1, *[length * encoder.stride for length in grid])
    expected = import_transformers().Dinov2Backbone.from_pretrained(folder, out_indices=layers).eval()
    with torch.no_grad():
        levels = expected(image.expand(-1, 3, -1, -1)).feature_maps
        found = encoder.eval()(image)
    for one, other, channels in zip(found, levels, encoder.channels, strict=True):
        assert one.shape == (2, channels, *grid)
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@quick
@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(1, 3), st.sampled_from([8, 14]))
def test_decoder_of_tokens_gives_the_size_of_the_image(grid: tuple[int, int], outputs: int, patch: int) -> None:
    decoder = DPTDecoder([3, 4, 5, 6], 4, outputs, patch)
    maps = [slices_of(2, channels, *grid, seed=channels) for channels in (3, 4, 5, 6)]
    result = decoder(maps)
    assert result.shape == (2, outputs, grid[0] * patch, grid[1] * patch)
    assert result.isfinite().all()


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 5)], ids=str)
def test_decoder_of_few_tokens(grid: tuple[int, int]) -> None:
    """A small image is one or two tokens; what has one element has no instance norm."""
    decoder = DPTDecoder([3] * 4, 4, 2, 14)
    for train_mode in (True, False):
        assert decoder.train(train_mode)([slices_of(1, 3, *grid)] * 4).shape == (1, 2, grid[0] * 14, grid[1] * 14)


@pytest.mark.parametrize("level", range(4))
def test_decoder_of_tokens_uses_every_level(level: int) -> None:
    decoder = DPTDecoder([3] * 4, 4, 2, 14).eval()
    maps = [slices_of(1, 3, 3, 4, seed=seed) for seed in range(4)]
    changed_maps = [slices_of(1, 3, 3, 4, seed=9) if index == level else one for index, one in enumerate(maps)]
    assert (decoder(maps) - decoder(changed_maps)).abs().mean() > 1e-3


def dinov2_config(folder: Path, **overrides: Any) -> Config:
    """A planned configuration that starts from the weights in `folder`."""
    config = tiny_config(
        TINY_2D
        | {"data.patch_size": (42, 28), "data.spacing": (2.0, 2.0, 0.0)}
        | {"model.backbone": "dinov2", "model.pretrained": str(folder)}
        | overrides
    )
    return plan(config, [Grid((48, 32, 4), make_affine((48, 32, 4), (2.0, 2.0, 2.0)))])


def test_planning_reads_the_architecture(folder: Path) -> None:
    config = dinov2_config(folder)
    assert config.model.dinov2 == DINOv2(**TINY_FOUNDATION)
    assert config.model.stride == config.model.finest_stride == 14
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match="multiples of 14"):
        dinov2_config(folder, **{"data.patch_size": (40, 28)})


@pytest.mark.parametrize("codes", [1, 3, None])
def test_network_of_tokens_quantises_four_levels(codes: int | None, folder: Path) -> None:
    network = tiny_network(dinov2_config(folder, **{"model.code_groups": codes, "model.shallow_skips": codes is None}))
    output = network(slices_of(2, 1, 42, 28), reconstruct=1)
    assert output.logits.shape == (2, 3, 42, 28)
    assert output.image is not None
    assert output.image.shape == (1, 1, 42, 28)
    assert output.indices is not None
    assert output.tokens is not None
    assert output.codes is not None
    code_dim = 4
    channels = code_dim * (codes or TINY_FOUNDATION["hidden_size"] // code_dim)
    assert [one.shape for one in output.maps] == [(2, channels, 3, 2)] * 4
    count = 4 * 3 * 2 * channels // code_dim
    assert output.indices.shape == (2, count)
    assert output.tokens.shape == output.codes.shape == (2, count, code_dim)


def test_nothing_reaches_the_decoders_of_tokens_but_the_codes(folder: Path) -> None:
    network = tiny_network(dinov2_config(folder))

    def all_three(indices: Tensor, codebook: Tensor) -> Tensor:
        return torch.full_like(indices, 3)

    with torch.no_grad():
        results = [network(slices_of(2, 1, 42, 28, seed=seed), all_three, reconstruct=2) for seed in (1, 2)]
        free = [network(slices_of(2, 1, 42, 28, seed=seed), reconstruct=2) for seed in (1, 2)]
    torch.testing.assert_close(results[0].logits, results[1].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[0].image, results[1].image, atol=1e-4, rtol=1e-4)
    assert (free[0].logits - free[1].logits).abs().mean() > 1e-2


def test_a_published_model_needs_its_pretrained_folder_no_more(tmp_path: Path) -> None:
    folder = foundation_folder(tmp_path / "pretrained")
    config = dinov2_config(folder)
    network = tiny_network(config)
    load_backbone_weights(network.encoder, str(folder))
    ModelStore(tmp_path / "models").publish(network, {"config": config.model_dump(mode="json")})
    shutil.rmtree(folder)
    predictor = Predictor.load(tmp_path / "models", "cpu")
    array = np.random.default_rng(0).normal(size=(48, 32, 4))
    found = predictor.predict(make_volume(array, np.diag([2.0, 2.0, 2.0, 1.0])))
    expected = Predictor(network, config, CPU).predict(make_volume(array, np.diag([2.0, 2.0, 2.0, 1.0])))
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.usage, expected.usage)
    assert found.usage.sum() > 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (10, 10, 2), (28, 10, 2), (28, 28, 1), (90, 20, 2)], ids=str)
def test_small_and_odd_images_are_segmented(folder: Path, shape: tuple[int, int, int]) -> None:
    config = dinov2_config(folder)
    volume = make_volume(np.random.default_rng(0).normal(size=shape), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert Predictor(tiny_network(config), config, CPU).predict(volume).mask.shape == shape


def test_training_starts_from_the_pretrained_weights_and_publishes(tmp_path: Path) -> None:
    """With hardly any learning rate, what is published has the encoder of the folder."""
    folder = foundation_folder(tmp_path / "pretrained", seed=7)
    studies = write_studies(tmp_path / "studies", 3, 2, shape=(30, 30, 4))
    settings = {"train.steps": 3, "train.validate_every": 3, "train.learning_rate": 1e-12, "train.weight_decay": 0.0}
    config = tiny_config(
        TINY_2D | {"data.patch_size": (42, 28), "model.backbone": "dinov2", "model.pretrained": str(folder)} | settings
    )
    result = train(studies, tmp_path / "run", config, device="cpu")
    assert result.live is not None
    expected = import_transformers().Dinov2Model.from_pretrained(folder).state_dict()
    shutil.rmtree(folder)
    network = Predictor.load(tmp_path / "run", "cpu").network
    assert isinstance(network, VQSeg)
    assert isinstance(network.encoder, DINOv2Encoder)
    torch.testing.assert_close(dict(network.encoder.backbone.state_dict()), dict(expected), atol=1e-6, rtol=1e-6)
