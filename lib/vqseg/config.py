"""Typed settings: every field with its unit and default; an unknown key is an error.

A preset is a YAML file in `presets/` that overrides defaults; `--set section.key=value` overrides the preset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vqseg.errors import ConfigError
from vqseg.settings_source import preset_names, read_settings

__all__ = [
    "Active",
    "Config",
    "DINOv2",
    "Data",
    "Foundation",
    "Inference",
    "Loss",
    "Model",
    "Perturbation",
    "Tracking",
    "Train",
    "Views",
    "checked",
    "load_config",
    "option_names",
    "preset_names",
]


class Section(BaseModel):
    """A group of settings that cannot change after it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """What the images are and how they reach the network."""

    labels: dict[str, int] = Field({}, description="name of a structure -> its value, 1..L")
    spatial_dims: Literal[2, 3] = Field(3, description="2: slice by slice; 3: volumes")
    spacing: Literal["median", "native"] | tuple[float, float, float] = Field(
        "median", description="working voxel size in mm on the R, A, S axes; an entry of 0 keeps the image's own"
    )
    slice_axis: int | None = Field(None, ge=0, le=2, description="2D only: axis of slices; none: the coarsest one")
    window: tuple[float, float] | None = Field(
        None, description="intensities mapped to -1..1 (CT, in HU); none: clip at percentiles 0.5 and 99.5, z-score"
    )
    patch_size: tuple[int, ...] | None = Field(None, description="voxels per axis; none: the median image, bounded")
    patch_voxels: int = Field(
        160_000, ge=512, description="bound on the voxels of a patch that is chosen from the data"
    )
    validation_fraction: float = Field(0.2, ge=0, lt=1, description="share of labelled patients locked for validation")
    patient_pattern: str = Field(
        "", description="regular expression whose first match in an image's id is its patient; empty: built-in rule"
    )

    @field_validator("labels")
    @classmethod
    def _labels_without_gaps(cls, labels: dict[str, int]) -> dict[str, int]:
        if sorted(labels.values()) != list(range(1, len(labels) + 1)):
            raise ValueError(f"label values must be 1..{len(labels)} without gaps, got {sorted(labels.values())}")
        if len(labels) > 255:
            raise ValueError("at most 255 structures fit into a mask")
        for name in labels:
            if not name.strip() or name != name.strip() or len(name) > 64 or "\\" in name or not name.isprintable():
                raise ValueError(
                    f"{name!r}: a name has 1 to 64 characters, no backslash and no space around it (DICOM)"
                )
        if "background" in labels:
            raise ValueError("background is always 0 and is not listed")
        return dict(sorted(labels.items(), key=lambda item: item[1]))

    @model_validator(mode="after")
    def _geometry_fits(self) -> Data:
        if self.patch_size is not None and len(self.patch_size) != self.spatial_dims:
            raise ValueError(f"patch_size needs {self.spatial_dims} numbers, got {len(self.patch_size)}")
        if self.patch_size is not None and min(self.patch_size) < 1:
            raise ValueError("patch_size needs positive numbers")
        if not isinstance(self.spacing, str) and min(self.spacing) < 0:
            raise ValueError("spacing cannot be negative")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("window needs its lower end first")
        if self.slice_axis is not None and self.spatial_dims == 3:
            raise ValueError("slice_axis has a meaning with spatial_dims 2 only")
        return self


class DINOv2(Section):
    """Architecture of a DINOv2 encoder (Oquab et al., arXiv 2304.07193), under the names that transformers gives it."""

    hidden_size: int = Field(384, ge=1, description="channels of a token")
    num_hidden_layers: int = Field(12, ge=4, description="layers; four of them, evenly spread, are levels")
    num_attention_heads: int = Field(6, ge=1)
    mlp_ratio: int = Field(4, ge=1)
    patch_size: int = Field(14, ge=1, description="pixels along one token")
    image_size: int = Field(518, ge=1, description="pixels for which the position embeddings were learnt")
    num_channels: int = Field(3, ge=1, description="the one channel of an image is repeated")
    use_swiglu_ffn: bool = False
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(1e-6, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> DINOv2:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        return self


class Model(Section):
    """The network. Level 0 has the image's resolution, each further level half of the one before."""

    backbone: Literal["conv", "dinov2"] = Field("conv", description="encoder: convolutions, or DINOv2 (2D only)")
    pretrained: str = Field("", description="dinov2 only: hub name or folder of the weights to start from")
    dinov2: DINOv2 | None = Field(None, description="dinov2 only; none: as the weights of `pretrained` say")
    quantized: bool | None = Field(None, description="vector quantisation; none: as the training method asks")
    channels: tuple[int, ...] = Field((16, 32, 64, 128), min_length=2, description="feature channels of each level")
    first_quantized_level: int = Field(
        2, ge=0, description="levels from this one on are quantised; the finer ones hold outlines rather than meaning"
    )
    shallow_skips: bool = Field(
        True, description="finer levels reach the segmentation decoder as they are; else they feed coarser ones alone"
    )
    codebook_size: int = Field(256, ge=2, le=65536, description="number of codes K")
    code_dim: int = Field(8, ge=1, description="dimension D of a code")
    code_groups: int | None = Field(
        None, ge=1, description="codes a position, each for a part of its features; none: channels / code_dim"
    )

    @property
    def stride(self) -> int:
        """Voxels of the image along one element of the coarsest level."""
        if self.backbone == "dinov2":
            return (self.dinov2 or DINOv2()).patch_size
        return 2 ** (len(self.channels) - 1)

    @property
    def has_codebook(self) -> bool:
        """Whether the network quantises; so it does where neither settings nor method were asked yet."""
        return self.quantized is not False

    @property
    def finest_stride(self) -> int:
        """Voxels of the image along one element of the finest quantised level."""
        return self.stride if self.backbone == "dinov2" else 2**self.first_quantized_level

    @model_validator(mode="after")
    def _levels_exist(self) -> Model:
        if min(self.channels) < 1:
            raise ValueError("channels needs positive numbers")
        if self.first_quantized_level >= len(self.channels):
            levels = f"{len(self.channels)}, the number of levels"
            raise ValueError(f"first_quantized_level must be below {levels}: lower it, or name more `channels`")
        if self.backbone == "dinov2" and not self.pretrained and self.dinov2 is None:
            raise ValueError("backbone dinov2 needs `pretrained`, a folder or a hub name such as facebook/dinov2-small")
        if self.backbone != "dinov2" and (self.pretrained or self.dinov2):
            raise ValueError("`pretrained` and `dinov2` have a meaning with backbone dinov2 only")
        return self


class Perturbation(Section):
    """What the features of the unlabelled weak view go through before they are decoded."""

    kind: Literal["qpm", "dropout"] = Field(
        "qpm", description="quantised perturbation of codebook indices, or dropout of feature channels in its place"
    )
    dropout_rate: float = Field(0.5, ge=0, lt=1, description="probability that a feature channel is dropped")
    rate: float = Field(0.7, ge=0, le=1, description="QPM's probability eps that a code is replaced")
    replacement_codes: float = Field(
        16.0, ge=1, description="effective number (perplexity) of codes that replace one code; at most K - 1"
    )


class Foundation(Section):
    """The frozen foundation model that guides the codes (PFA)."""

    name: str = Field("none", description="hub name or folder of a DINOv2-like transformers model; none: no guidance")
    size: int = Field(224, ge=16, description="pixels along the sides of a slice as the foundation model sees it")
    slice_axis: int | None = Field(
        None, ge=0, le=2, description="axis along which it sees slices; none: that of the 2D network, or the coarsest"
    )
    temperature: float = Field(0.07, gt=0, description="temperature tau of the patch-wise InfoNCE")

    @property
    def in_use(self) -> bool:
        return self.name != "none"


class Loss(Section):
    """Weights of the terms."""

    segmentation: Literal["dice_ce", "dice_balanced_ce", "ce"] = Field(
        "dice_ce",
        description="Dice + cross-entropy, the latter balanced between classes or not, or cross-entropy alone",
    )
    reconstruction: float = Field(1.0, ge=0, description="weight of the L1 image reconstruction")
    unlabelled: float = Field(1.0, ge=0, description="lambda_u: weight of the unlabelled terms")
    perturbed: float = Field(1.0, ge=0, description="weight of the perturbed weak view among the unlabelled terms")
    strong: float = Field(1.0, ge=0, description="weight of the strong view among the unlabelled terms")
    copy_paste: float = Field(0.5, ge=0, description="weight of the pseudo-labelled part of a copy-pasted image (BCP)")
    largest_component: bool = Field(True, description="BCP keeps the largest component of a structure's pseudo-label")
    alignment: float = Field(5.0, ge=0, description="lambda_a: weight of the alignment with the foundation model")
    codebook: float = Field(1.0, ge=0, description="weight of the codebook loss")
    commitment: float = Field(0.25, ge=0, description="weight of the commitment loss within the codebook loss")
    confidence: float = Field(0.99, ge=0, lt=1, description="confidence of the teacher below which a voxel is skipped")


class Views(Section):
    """Random changes of the training patches."""

    rotation: float = Field(15.0, ge=0, le=180, description="largest rotation about each axis, degrees")
    scale: float = Field(0.2, ge=0, description="largest relative change of size")
    shift: float = Field(0.05, ge=0, description="largest shift, share of the patch")
    flip_axes: tuple[int, ...] = Field((), description="patch axes on which the anatomy may be mirrored")
    elastic: float = Field(1.5, ge=0, description="standard deviation of the elastic deformation, mm")
    intensity_share: float = Field(0.2, ge=0, le=1, description="probability of each change of intensity")
    contrast: float = Field(0.5, ge=0, description="largest relative change of contrast")
    brightness: float = Field(0.5, ge=0, description="largest change of brightness, standard deviations")
    gamma: float = Field(0.5, ge=0, description="largest relative change of the gamma exponent")
    noise: float = Field(0.2, ge=0, description="largest standard deviation of added noise")
    blur: float = Field(0.7, ge=0, description="largest blur beyond 0.3, voxels")
    cutmix: float = Field(0.5, ge=0, le=1, description="probability of CutMix in the strong view")
    copy_paste: float = Field(2 / 3, gt=0, lt=1, description="side of the box that BCP pastes, share of the patch")


class Train(Section):
    """Length, batches and optimiser."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    labelled_batch: int = Field(2, ge=1, description="labelled patches a step")
    unlabelled_batch: int = Field(
        2, ge=1, description="unlabelled patches a step, each in one weak and one strong view"
    )
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's peak learning rate")
    pretrained_rate: float = Field(0.025, gt=0, description="learning rate of a pretrained encoder relative to it")
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(50, ge=0, description="steps of linear learning-rate warm-up")
    supervised_share: float = Field(
        0.6, ge=0, lt=1, description="share of the steps on labelled patches alone, until the teacher can teach"
    )
    rampup_share: float = Field(0.05, ge=0, le=1, description="further share in which the unlabelled terms gain weight")
    poly_power: float = Field(0.9, ge=0, description="exponent of the polynomial learning-rate decay")
    teacher_decay: float = Field(0.99, ge=0, lt=1, description="upper bound of the EMA decay")
    clip_gradient: float = Field(5.0, gt=0, description="largest gradient norm")
    validate_every: int = Field(100, ge=1, description="steps between validations")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    seed: int = Field(0, ge=0, lt=2**31, description="the one seed from which every draw follows")
    mixed_precision: bool | None = Field(None, description="bfloat16 autocast; none: where the processor has it")
    compile: bool = Field(False, description="torch.compile of encoder and decoders; on a processor it was slower")


class Inference(Section):
    """From an image to its mask."""

    mirror: bool = Field(True, description="average over the image and its mirror images along views.flip_axes")


class Active(Section):
    """Choice of the study to label next."""

    strategy: str = Field("typical", description="strategy that also answers to MONAI Label's `random`")
    cold_start_steps: int = Field(0, ge=0, description="steps in which a server learns from images alone; 0: never")
    cold_strategy: str = Field("typical", description="in the place of those that need to know structures")
    tokens: int = Field(2048, ge=2, description="tokens to which a study's code usage is rarefied")
    smoothing: float = Field(0.5, gt=0, description="tokens added to every code before frequencies are compared")
    enough_studies: float = Field(
        10.0,
        gt=0,
        description="a code is covered by as many of its tokens as so many studies have of a code on average",
    )
    power: float = Field(1.0, gt=0, description="exponent of noisy scores: the larger, the less noise")
    balanced_parts: tuple[Literal["rarity", "coverage", "disagreement"], ...] = Field(
        ("rarity", "coverage", "disagreement"), min_length=1, description="scores that `codebook_balanced` combines"
    )
    balanced_power: float = Field(4.0, gt=0, description="exponent of the noisy scores of `codebook_balanced`")
    most_clusters: int = Field(500, ge=1, description="bound on the clusters of `typical`")
    draws: int = Field(8, ge=2, description="draws of `perturbation`: by QPM, or what the network was trained with")
    batch: int = Field(3, ge=1, description="studies of a batch of `stochastic_batches`, unless more are asked for")
    batches: int = Field(100, ge=1, description="random batches among which `stochastic_batches` chooses")
    batches_of: str = Field("predictive_entropy", description="strategy by whose scores `stochastic_batches` chooses")
    reserve_minutes: float = Field(30.0, ge=0, description="minutes for which a study is offered to one client alone")


class Tracking(Section):
    """Where the figures of a training go while it runs, without a part in what it learns."""

    to: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        ("tensorboard",), description="tensorboard, mlflow, both, or none; an empty list is none as well"
    )
    every: int = Field(10, ge=1, description="steps from one point of the losses to the next")

    @field_validator("to", mode="before")
    @classmethod
    def _one_or_none(cls, to: Any) -> Any:
        if to is None or to == "none":
            return ()
        return (to,) if isinstance(to, str) else to

    @field_validator("to")
    @classmethod
    def _each_once(cls, to: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(to))


class Config(Section):
    """All settings of a training; kept in the manifest of the model it makes."""

    data: Data = Data()
    model: Model = Model()
    perturbation: Perturbation = Perturbation()
    foundation: Foundation = Foundation()
    loss: Loss = Loss()
    views: Views = Views()
    train: Train = Train()
    inference: Inference = Inference()
    active: Active = Active()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        patch, stride, dims = self.data.patch_size, self.model.stride, self.data.spatial_dims
        seen, sliced = self.foundation.slice_axis, self.data.slice_axis
        if dims == 2 and None not in (seen, sliced) and seen != sliced:
            raise ValueError("foundation.slice_axis must be data.slice_axis: in 2D both see the same slices")
        if self.model.backbone == "dinov2":
            if dims == 3:
                raise ValueError("model.backbone dinov2 sees slices; set data.spatial_dims to 2")
            if self.model.dinov2 is None:
                return self  # its stride is not known before the weights were looked at
        if patch is not None and any(size % stride for size in patch):
            raise ValueError(
                f"data.patch_size {patch} must hold multiples of {stride}, for {stride} voxels are one "
                "element of the coarsest level"
            )
        if patch is not None and max(patch) == stride:
            raise ValueError(f"data.patch_size {patch} must be larger than {stride} on one axis at least")
        if any(not 0 <= axis < dims for axis in self.views.flip_axes):
            raise ValueError(f"views.flip_axes {self.views.flip_axes} must lie in 0..{dims - 1}")
        return self


def option_names() -> list[str]:
    """Every settable key, as `section.key`."""
    return [f"{section}.{key}" for section, field in Config.model_fields.items() for key in _fields(field.annotation)]


def load_config(source: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a preset name or a YAML file, then apply `section.key` overrides (strings are parsed as YAML).

    Raises `ConfigError` with the key and the reason.
    """
    settings = read_settings(source, Config.model_fields) if source is not None else {}
    for key, value in (overrides or {}).items():
        section, _, name = key.partition(".")
        if key not in option_names():
            raise ConfigError(f"unknown option {key!r}; known options: {', '.join(option_names())}")
        settings.setdefault(section, {})[name] = _parse(key, value)
    return checked(settings)


def checked(settings: Mapping[str, Any]) -> Config:
    """The configuration with these sections. Raises `ConfigError` with the key and the reason."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(_problems(error))) from None


def _fields(annotation: Any) -> list[str]:
    return list(annotation.model_fields)


def _parse(key: str, value: Any) -> Any:
    section, _, name = key.partition(".")
    annotation = Config.model_fields[section].annotation
    if not isinstance(value, str) or (annotation and annotation.model_fields[name].annotation is str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{key}={value}: the value cannot be read (it is parsed as YAML)") from None


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
        if problem["type"] == "extra_forbidden":
            yield f"unknown option {key!r}; known options: {', '.join(option_names())}"
        else:
            yield f"{key}: {problem['msg']} (got {problem.get('input')!r})"
