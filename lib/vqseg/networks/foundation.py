"""The frozen foundation model that guides the codes, and the adapter that compares them with it.

PFA, the post-VQ feature adapter of VQ-Seg (arXiv 2601.10124): the quantised features, resized and put through a 1x1
convolution, are to tell the positions of an image apart as the features of a foundation model do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqseg.config import Config, DINOv2
from vqseg.errors import ConfigError
from vqseg.networks.encoders import DINOv2Encoder, Encoder
from vqseg.torchvision_schemas import import_transformers

__all__ = ["FeatureAdapter", "FoundationModel", "fetch_foundation", "load_backbone_weights", "read_architecture"]

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@dataclass(frozen=True)
class FoundationModel:
    """A vision transformer that is never trained. `channels` of its features, `patch` pixels along one of them; `mean`
    and `std` of the images it was trained on, for each of its input channels."""

    network: nn.Module
    channels: int
    patch: int
    mean: Tensor
    std: Tensor

    @classmethod
    def load(cls, name: str, device: torch.device) -> FoundationModel:
        """Load a hub name or a folder. Raises `ConfigError`, which says how to fetch it beforehand."""
        auto = import_transformers()
        config = _read_config(name)
        network = _loaded(name, lambda: auto.AutoModel.from_pretrained(name, config=config, use_safetensors=True))
        processor = _loaded(name, lambda: auto.AutoImageProcessor.from_pretrained(name))
        normalised = [torch.tensor(values).view(1, -1, 1, 1) for values in (processor.image_mean, processor.image_std)]
        network = network.to(device).eval().requires_grad_(False)
        return cls(network, config.hidden_size, config.patch_size, normalised[0], normalised[1])

    @torch.no_grad()
    def features(self, slices: Tensor, size: int) -> Tensor:
        """Features (S, C, h, w) of slices (S, H, W) with values in 0..1, whose longer side becomes `size` pixels."""
        device = next(self.network.parameters()).device
        scale = size / max(slices.shape[1:])
        grid = [max(1, round(length * scale / self.patch)) for length in slices.shape[1:]]
        pixels = functional.interpolate(
            slices[:, None].to(device),
            [length * self.patch for length in grid],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        pixels = (pixels - self.mean.to(device)) / self.std.to(device)
        tokens = self.network(pixel_values=pixels).last_hidden_state
        # The class token and, in some relatives, registers come first.
        return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


class FeatureAdapter(nn.Module):
    """Resizes the quantised maps and puts them through a 1x1 convolution.

    Args: `config` planned; `channels` of the foundation model's features.
    """

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        model, dims = config.model, config.data.spatial_dims
        levels = 4 if model.backbone == "dinov2" else len(model.channels) - model.first_quantized_level
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.convolution = conv(levels * model.code_dim, channels, 1)

    def forward(self, maps: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Features (B, channels, *grid) from the quantised maps (B, D, *spatial) of all levels."""
        resized = [functional.interpolate(m, list(grid), mode=self.mode, align_corners=False) for m in maps]
        return self.convolution(torch.cat(resized, 1))


def read_architecture(name: str) -> DINOv2:
    """Architecture of the DINOv2 model `name`, a hub name or a folder. Raises `ConfigError`."""
    config = _read_config(name)
    if config.model_type != "dinov2":
        raise ConfigError(f"{name}: model.backbone dinov2 needs a model of that type, this one is {config.model_type}")
    return DINOv2(**{field: getattr(config, field) for field in DINOv2.model_fields})


def load_backbone_weights(encoder: Encoder, name: str) -> None:
    """Start a DINOv2 encoder from the weights of `name`. Raises `ConfigError`."""
    model = import_transformers().Dinov2Model
    weights = _loaded(name, lambda: model.from_pretrained(name, use_safetensors=True)).state_dict()
    assert isinstance(encoder, DINOv2Encoder)
    encoder.backbone.load_state_dict(weights)


def fetch_foundation(name: str, folder: Path) -> None:
    """Put the files of a hub model into `folder`, for a machine without internet. Raises `ConfigError`."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, local_dir=folder, allow_patterns=list(_FILES))
    except Exception as error:  # the hub's client raises a dozen kinds, of its own and of its HTTP library
        raise ConfigError(f"{name}: cannot be fetched ({_first_line(error)})") from None
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise ConfigError(f"{name}: has no {', '.join(missing)}; only models with safetensors weights can be used")


def _read_config(name: str) -> Any:
    config = _loaded(name, lambda: import_transformers().AutoConfig.from_pretrained(name))
    if not all(isinstance(getattr(config, field, None), int) for field in ("patch_size", "hidden_size")):
        raise ConfigError(f"{name}: a {config.model_type} model has no patches; use a DINOv2-like vision transformer")
    return config


def _loaded(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, errors of safetensors and of HTTP
        raise ConfigError(
            f"foundation model {name!r} cannot be loaded ({_first_line(error)}). Where there is internet, "
            "`vqseg fetch-foundation NAME DIR` puts a model of the Hugging Face hub into a folder; give that folder"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
