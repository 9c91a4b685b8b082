"""Versions of a model: a new folder for each, and a pointer that says which one is live.

A version never changes. Publishing writes the folder whole, then replaces the pointer in one step, so a reader finds
either the former model or the new one, and a crash leaves the former one live.

    <store>/live.json                      {"live": "0002", "history": ["0001", "0002"]}
    <store>/0002/model.safetensors         weights
    <store>/0002/manifest.json             settings, scores, data, versions of the software, SHA-256 of the weights and
                                           of the manifest's own content
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vqseg.config import Config
from vqseg.errors import ModelError
from vqseg.files import new_folder, read_json, sha256, write_json

__all__ = ["ModelStore", "ModelVersion", "find_version", "load_weights"]

_POINTER, _WEIGHTS, _MANIFEST = "live.json", "model.safetensors", "manifest.json"
_SEAL = "manifest_sha256"
_MODELS_OF_A_RUN = "models"


@dataclass(frozen=True)
class ModelVersion:
    """One published model."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def config(self) -> Config:
        """Settings it was trained with. Raises `ModelError`."""
        try:
            return Config.model_validate(self.manifest["config"])
        except (KeyError, ValidationError):
            raise ModelError(f"{self.folder / _MANIFEST}: its settings are damaged or of another version") from None

    @property
    def segments(self) -> bool:
        """Whether it was trained on labels; one that was not tells studies apart and segments nothing."""
        return bool(self.manifest.get("segments", True))

    @property
    def score(self) -> float | None:
        """Mean Dice on the studies it was validated on."""
        return self.manifest.get("validation", {}).get("dice")


class ModelStore:
    """A folder of versions. One writer at a time; any number of readers."""

    def __init__(self, folder: Path, *, keep: int = 20) -> None:
        self.folder, self.keep = folder, keep

    def versions(self) -> list[ModelVersion]:
        """All whole versions, oldest first."""
        folders = sorted(path.parent for path in self.folder.glob(f"[0-9]*/{_MANIFEST}"))
        return [version for folder in folders if (version := _read_version(folder))]

    def live(self) -> ModelVersion | None:
        """The version in use, or none when nothing was published."""
        return next(self.lived(), None)

    def lived(self) -> Iterator[ModelVersion]:
        """The versions that were live, the last one first; one whose manifest is damaged is passed over."""
        for name in reversed(self.history()):
            if version := _read_version(self.folder / name):
                yield version

    def publish(self, network: nn.Module, manifest: dict[str, Any]) -> ModelVersion:
        """Add the network's weights as a new version and make it live."""
        numbers = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
        name = f"{max(numbers, default=0) + 1:04d}"
        with new_folder(self.folder / name) as folder:
            weights = {key: value.contiguous() for key, value in network.state_dict().items()}
            (folder / _WEIGHTS).write_bytes(save(weights))
            content = manifest | {"version": name, "sha256": sha256(folder / _WEIGHTS)}
            write_json(folder / _MANIFEST, content | {_SEAL: _seal(content)})
        self._point_at(name)
        self._prune()
        version = _read_version(self.folder / name)
        assert version is not None
        return version

    def make_live(self, name: str) -> ModelVersion:
        """Make an existing version live. Raises `ModelError` when there is none of that name."""
        known = {version.name: version for version in self.versions()}
        if name not in known:
            raise ModelError(f"{self.folder}: there is no version {name!r}; versions: {', '.join(known) or 'none'}")
        self._point_at(name)
        return known[name]

    def rollback(self) -> ModelVersion:
        """Make the version live that was live before. Raises `ModelError` when there is none."""
        known = {version.name: version for version in self.versions()}
        earlier = [name for name in self.history()[:-1] if name in known]
        if not earlier:
            raise ModelError(f"{self.folder}: there is no earlier version to go back to")
        self._write_history(earlier)
        return known[earlier[-1]]

    def history(self) -> list[str]:
        """Names of the versions that were live, the live one last."""
        pointer = read_json(self.folder / _POINTER)
        history = pointer.get("history") if isinstance(pointer, dict) else None
        return [name for name in history if isinstance(name, str)] if isinstance(history, list) else []

    def _point_at(self, name: str) -> None:
        self._write_history([*(earlier for earlier in self.history() if earlier != name), name])

    def _write_history(self, names: list[str]) -> None:
        write_json(self.folder / _POINTER, {"live": names[-1], "history": names[-self.keep :]})

    def _prune(self) -> None:
        live = self.live()
        for version in self.versions()[: -self.keep]:
            if live is None or version.name != live.name:
                shutil.rmtree(version.folder, ignore_errors=True)


def find_version(folder: Path) -> ModelVersion:
    """The live version of a run or a store, or the version that `folder` itself is. Raises `ModelError`."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder")
    if not (folder / _MANIFEST).exists():
        stores = [ModelStore(folder / _MODELS_OF_A_RUN), ModelStore(folder)]
        live = [store.folder / names[-1] for store in stores if (names := store.history())]
        if not live:
            raise ModelError(f"{folder}: holds no trained model yet; train one first")
        folder = live[0]
    version = _read_version(folder)
    if version is None:
        raise ModelError(
            f"{folder / _MANIFEST}: gone, damaged or of another version; roll back to another model version"
        )
    return version


def load_weights(network: nn.Module, version: ModelVersion) -> None:
    """Load a version's weights after checking their SHA-256. Raises `ModelError`."""
    path = version.folder / _WEIGHTS
    try:
        if sha256(path) != version.manifest.get("sha256"):
            raise ModelError(f"{path}: damaged (its SHA-256 is not that of the manifest); roll back to another version")
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from None


def _read_version(folder: Path) -> ModelVersion | None:
    """The version in a folder; none where its manifest is not what was published."""
    manifest = read_json(folder / _MANIFEST)
    if not isinstance(manifest, dict):
        return None
    content = {key: value for key, value in manifest.items() if key != _SEAL}
    return ModelVersion(folder.name, folder, manifest) if manifest.get(_SEAL) == _seal(content) else None


def _seal(manifest: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
