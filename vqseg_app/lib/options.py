"""The options on start: `--conf key value`, checked before anything else happens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqseg.config import Config, load_config, option_names
from vqseg.errors import ConfigError

from .access import CLOSABLE, Closable
from .origins import read_origins

# Read by monailabel's MONAILabelApp.__init__ (0.8.5).
_OF_MONAI_LABEL = ("server_mode",)

_OWN = {
    "labels": "names of the structures in the order of their values, `a,b` (value 1 is a)",
    "preset": "a preset's name or a settings file (YAML)",
    "device": "auto, cpu, cuda or cuda:N",
    "method": "training method",
    "model_dir": "folder of the training and its models",
    "score_seconds": "longest time in which a request for the next study looks at images not seen before",
    "pacs_cache_gb": "largest size of the images of a PACS on this machine's disk, GB",
    "accounts": "file of accounts (`vqseg token add`); without one everybody who reaches the server may do everything",
    "open_routes": "routes that are closed otherwise, `a,b`: archives, logs, model_files, reload, slides",
    "cors_origins": "addresses of viewers on other servers that a browser may use this one from, `a,b`",
    "open_network": "true: other machines than this one are answered without accounts, too",
    "infer_waiting": "inferences that may wait for their turn, and as many selections; one more is answered with 503",
    "infer_seconds": "longest time from the request for a mask or a study to the answer, waiting included",
    "infer_memory_gib": "memory that one image may take, GiB; without it what the machine has left at the time",
    "upload_gib": "largest upload as it is sent, GiB",
    "upload_unpacked_gib": "largest uploaded image or mask once unpacked, GiB",
    "upload_megavoxels": "largest uploaded image or mask, millions of voxels",
    "validation_fraction": "short for data.validation_fraction",
}


@dataclass(frozen=True)
class Options:
    """Checked options. `settings` are the overrides of the library's settings."""

    settings: Mapping[str, Any]
    preset: str | None = None
    device: str = "auto"
    method: str = "vqseg"
    model_dir: Path | None = None
    score_seconds: float = 20.0
    pacs_cache_gb: float = 20.0
    accounts: Path | None = None
    open_routes: frozenset[Closable] = frozenset()
    open_network: bool = False
    cors_origins: frozenset[str] = frozenset()
    infer_waiting: int = 16
    # A whole CT in small patches takes minutes on a processor.
    infer_seconds: float = 1800.0
    infer_memory_gib: float | None = None
    # A CT of 1000 slices of 512 x 512 pixels has 262 million voxels, 0.5 GiB of them, or 2 GiB of a mask in float64.
    upload_gib: float = 1.0
    upload_unpacked_gib: float = 2.0
    upload_megavoxels: float = 512.0

    def config(self, overrides: Mapping[str, Any] | None = None) -> Config:
        """Settings of the library; `overrides` win over the options on start. Raises `ConfigError`."""
        return load_config(self.preset, {**self.settings, **(overrides or {})})

    def run_folder(self, app_dir: str, studies: str) -> Path:
        """Folder of the training, one for each studies folder: two data sets never share a model."""
        if self.model_dir is not None:
            return self.model_dir
        name = re.sub(r"[^A-Za-z0-9]+", "-", studies.rstrip("/").split("/")[-1]).strip("-").lower() or "studies"
        digest = hashlib.sha256(studies.encode()).hexdigest()[:8]
        return Path(app_dir) / "model" / f"{name[:40]}-{digest}"


def own_options() -> dict[str, str]:
    """What the options that are not settings of the library mean."""
    return dict(_OWN)


def known_options() -> list[str]:
    """Every key that `--conf` takes."""
    return [*_OWN, *option_names()]


def read_options(conf: Mapping[str, str]) -> Options:
    """Check `--conf` pairs. Raises `ConfigError` naming the key, the reason and, if unknown, all known keys."""
    for key in conf:
        if key not in known_options() and key not in _OF_MONAI_LABEL:
            raise ConfigError(f"unknown option {key!r}; known options: {', '.join(known_options())}")
    settings: dict[str, Any] = {key: value for key, value in conf.items() if key in option_names()}
    if "validation_fraction" in conf:
        settings["data.validation_fraction"] = conf["validation_fraction"]
    if "labels" in conf:
        settings["data.labels"] = _label_values(conf["labels"])
    options = Options(
        settings=settings,
        preset=conf.get("preset"),
        device=_device(conf.get("device", Options.device)),
        method=conf.get("method", Options.method),
        model_dir=_path(conf, "model_dir"),
        score_seconds=_number(conf, "score_seconds", "seconds", 3600),
        pacs_cache_gb=_number(conf, "pacs_cache_gb", "GB", 1e6),
        accounts=_path(conf, "accounts"),
        open_routes=_closable(conf.get("open_routes", "")),
        open_network=_switch(conf, "open_network"),
        cors_origins=read_origins(conf.get("cors_origins", "")),
        infer_waiting=int(_number(conf, "infer_waiting", "requests", 1000)),
        infer_seconds=_number(conf, "infer_seconds", "seconds", 1e6),
        infer_memory_gib=_number(conf, "infer_memory_gib", "GiB", 1e6) if "infer_memory_gib" in conf else None,
        upload_gib=_number(conf, "upload_gib", "GiB", 1e6),
        upload_unpacked_gib=_number(conf, "upload_unpacked_gib", "GiB", 1e6),
        upload_megavoxels=_number(conf, "upload_megavoxels", "million voxels", 1e6),
    )
    options.config()
    return options


def _label_values(names: str) -> dict[str, int]:
    found = [name.strip() for name in names.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"labels={names!r}: expected different names separated by commas, like lung,tumour")
    return {name: value for value, name in enumerate(found, start=1)}


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|xpu|cuda(:\d+)?", name):
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda or cuda:N")
    return name


def _path(conf: Mapping[str, str], key: str) -> Path | None:
    return Path(conf[key]).expanduser().resolve() if key in conf else None


def _switch(conf: Mapping[str, str], key: str) -> bool:
    if (value := conf.get(key, "false")) not in ("true", "false"):
        raise ConfigError(f"{key}={value!r}: expected true or false")
    return value == "true"


def _closable(names: str) -> frozenset[Closable]:
    found = {name.strip() for name in names.split(",")} if names else set()
    if not found <= set(CLOSABLE):
        raise ConfigError(f"open_routes={names!r}: expected some of {','.join(CLOSABLE)}")
    return frozenset(name for name in CLOSABLE if name in found)


def _number(conf: Mapping[str, str], key: str, unit: str, limit: float) -> float:
    value = conf.get(key, getattr(Options, key))
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < limit:
        raise ConfigError(f"{key}={value!r}: expected a number of {unit} from 0 to {limit:g}")
    return number
