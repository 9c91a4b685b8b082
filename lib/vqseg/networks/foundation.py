"""The frozen foundation model that guides the codes, and the adapter that compares them with it.

PFA, the post-VQ feature adapter of VQ-Seg (arXiv 2601.10124): the quantised features, resized and put through a 1x1
convolution, are to tell the positions of an image apart as the features of a foundation model do.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqseg.config import Config, DINOv2
from vqseg.errors import ConfigError
from vqseg.files import new_folder
from vqseg.networks.encoders import DINOv2Encoder, Encoder, decoded_channels
from vqseg.torchvision_schemas import import_transformers

__all__ = ["FeatureAdapter", "FoundationModel", "fetch_foundation", "load_backbone_weights", "read_architecture"]

_ENCODERS, _GUIDES = ("dinov2",), ("dinov2", "dinov2_with_registers")
# A model's folder may name Python files of its own; they are never run.
_TRUST_NOTHING = {"trust_remote_code": False}
_REMEDY = (
    "where there is internet, `vqseg fetch-foundation NAME DIR` puts a model of the Hugging Face hub into a new "
    "folder; give that folder"
)
_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@dataclass(frozen=True)
class FoundationModel:
    """A vision transformer that is never trained. `channels` of its features, `patch` pixels along one of them; `mean`
    and `std` of the images it was trained on, for each of its input channels; `identity` is a hash of all this."""

    network: nn.Module
    channels: int
    patch: int
    mean: Tensor
    std: Tensor
    identity: str

    @classmethod
    def load(cls, name: str, device: torch.device) -> FoundationModel:
        """Load a hub name or a folder. Raises `ConfigError`, which says how to fetch it beforehand."""
        transformers = import_transformers()
        config = _read_config(name, _GUIDES)
        network = _load_weights(name, transformers.AutoModel)

        def statistics() -> list[Tensor]:
            processor = transformers.AutoImageProcessor.from_pretrained(name, **_TRUST_NOTHING)
            return [torch.tensor(list(values)) for values in (processor.image_mean, processor.image_std)]

        mean, std = _loaded(name, statistics)
        if len(mean) != config.num_channels or len(std) != config.num_channels:
            raise ConfigError(f"{name}: its preprocessor and its model disagree about the number of channels")
        digest = hashlib.sha256()
        for tensor in (mean, std, *network.state_dict().values()):
            digest.update(tensor.cpu().numpy().tobytes())
        network = network.to(device).eval().requires_grad_(False)
        shape = (1, -1, 1, 1)
        return cls(
            network, config.hidden_size, config.patch_size, mean.view(shape), std.view(shape), digest.hexdigest()
        )

    def grid(self, shape: Sequence[int], size: int) -> list[int]:
        """Number of its patches along the sides of a slice of `shape` whose longer side becomes `size` pixels."""
        return [max(1, round(length * size / max(shape) / self.patch)) for length in shape]

    @torch.no_grad()
    def features(self, slices: Tensor, size: int) -> Tensor:
        """Features (S, C, h, w) of slices (S, H, W) with values in 0..1, whose longer side becomes `size` pixels."""
        device = next(self.network.parameters()).device
        grid = self.grid(slices.shape[1:], size)
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
        dims = config.data.spatial_dims
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.convolution = conv(sum(decoded_channels(config)), channels, 1)

    def forward(self, maps: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Features (B, channels, *grid) from the quantised maps (B, D, *spatial) of all levels."""
        resized = [functional.interpolate(m, list(grid), mode=self.mode, align_corners=False) for m in maps]
        return self.convolution(torch.cat(resized, 1))


def read_architecture(name: str) -> DINOv2:
    """Architecture of the DINOv2 model `name`, a hub name or a folder. Raises `ConfigError`."""
    config = _read_config(name, _ENCODERS)
    return _loaded(name, lambda: DINOv2(**{field: getattr(config, field) for field in DINOv2.model_fields}))


def load_backbone_weights(encoder: Encoder, name: str) -> None:
    """Start a DINOv2 encoder from the weights of `name`. Raises `ConfigError`."""
    assert isinstance(encoder, DINOv2Encoder)
    weights = _load_weights(name, import_transformers().Dinov2Model).state_dict()
    encoder.backbone.load_state_dict(weights)


def fetch_foundation(name: str, folder: Path) -> None:
    """Put the files of a hub model into a new `folder`, for a machine without internet. Raises `ConfigError`."""
    from huggingface_hub import snapshot_download

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{name}: cannot be fetched ({folder} is there already and not empty; give a new folder)")
    with new_folder(folder) as new:
        try:
            snapshot_download(name, local_dir=new, allow_patterns=list(_FILES))
        except Exception as error:  # the hub's client raises a dozen kinds, of its own and of its HTTP library
            raise ConfigError(f"{name}: cannot be fetched ({_first_line(error)})") from None
        shutil.rmtree(new / ".cache", ignore_errors=True)
        missing = [file for file in _FILES if not (new / file).is_file()]
        if missing:
            raise ConfigError(f"{name}: has no {', '.join(missing)}; its weights must be one safetensors file")


def _read_config(name: str, types: Sequence[str]) -> Any:
    config = _loaded(name, lambda: import_transformers().AutoConfig.from_pretrained(name, **_TRUST_NOTHING))
    if config.model_type not in types:
        needed = " or ".join(types)
        raise ConfigError(f"{name}: is a {config.model_type} model; a DINOv2-like one is needed here ({needed})")
    return config


def _load_weights(name: str, kind: Any) -> nn.Module:
    """The model with every weight from its file: transformers fills in missing ones at random."""
    network, report = _loaded(
        name,
        lambda: kind.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **_TRUST_NOTHING
        ),
    )
    missing = [key for key in report["missing_keys"] if not key.endswith("mask_token")]
    if missing or report["mismatched_keys"]:
        wrong = sorted([*missing, *map(str, report["mismatched_keys"])])
        raise ConfigError(f"{name}: its weights do not fit its config.json, among them {wrong[0]}; {_REMEDY}")
    return network


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, errors of safetensors and of HTTP
        raise ConfigError(f"foundation model {name!r} cannot be loaded ({_first_line(error)}); {_REMEDY}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
