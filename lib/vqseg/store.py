"""Versions of a model: a new folder for each, and a pointer that says which one is live.

A version never changes. Publishing writes the folder whole, then replaces the pointer in one step, so a reader finds
either the former model or the new one, and a crash leaves the former one live. Writers of several processes take turns.
Should the disk spoil the pointer all the same, the newest whole version is live until the next writer mends it.

    <store>/live.json                      {"live": "0002", "history": ["0001", "0002"]}
    <store>/lock                           held by whoever writes
    <store>/0002/model.safetensors         weights
    <store>/0002/manifest.json             settings, scores, data, versions of the software, SHA-256 of the weights and
                                           of the manifest's own content
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
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
# Of versions from before 23 November 2026, when these were no settings yet.
_FORMER_NETWORK = {"code_groups": 1, "shallow_skips": False}
# Publishing the largest networks takes seconds.
_LONGEST_WAIT_SECONDS = 60.0


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
            settings = self.manifest["config"]
            return Config.model_validate(settings | {"model": _FORMER_NETWORK | settings["model"]})
        except (KeyError, TypeError, ValidationError):
            raise ModelError(f"{self.folder / _MANIFEST}: its settings are damaged or of another version") from None

    @property
    def segments(self) -> bool:
        """Whether it was trained on labels; one that was not tells studies apart and segments nothing."""
        return bool(self.manifest.get("segments", True))

    @property
    def score(self) -> float | None:
        """Mean Dice on the studies it was validated on."""
        return self.manifest.get("validation", {}).get("dice")

    @property
    def weights(self) -> Path:
        """File of the weights."""
        return self.folder / _WEIGHTS

    def check_weights(self) -> None:
        """Raises `ModelError` when the weights are not those that were published, by their SHA-256."""
        try:
            is_published = sha256(self.weights) == self.manifest.get("sha256")
        except OSError as error:
            raise ModelError(f"{self.weights}: cannot be loaded ({error.strerror})") from None
        if not is_published:
            raise ModelError(
                f"{self.weights}: damaged (its SHA-256 is not that of the manifest); roll back to another version"
            )

    def is_whole(self) -> bool:
        """Whether `check_weights` finds nothing; it reads all weights."""
        try:
            self.check_weights()
        except ModelError:
            return False
        return True


class ModelStore:
    """A folder of versions. Writers wait for each other, in this process and others; readers for nobody."""

    def __init__(self, folder: Path, *, keep: int = 20) -> None:
        self.folder, self.keep = folder, keep

    def versions(self) -> list[ModelVersion]:
        """All versions whose manifest is whole, oldest first."""
        return [version for name in self.names() if (version := _read_version(self.folder / name))]

    def names(self) -> list[str]:
        """Names of all versions, oldest first, those with a damaged manifest among them."""
        return sorted(path.parent.name for path in self.folder.glob(f"[0-9]*/{_MANIFEST}"))

    def find(self, name: str) -> ModelVersion:
        """The version of that name. Raises `ModelError` when there is none, or its manifest is damaged."""
        if name not in (known := self.names()):
            raise ModelError(f"{self.folder}: there is no version {name!r}; versions: {', '.join(known) or 'none'}")
        return _whole_version(self.folder / name)

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
        with self._turn():
            return self._publish(network, manifest)

    def _publish(self, network: nn.Module, manifest: dict[str, Any]) -> ModelVersion:
        numbers = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
        name = f"{max(numbers, default=0) + 1:04d}"
        with new_folder(self.folder / name) as folder:
            weights = {key: value.contiguous() for key, value in network.state_dict().items()}
            (folder / _WEIGHTS).write_bytes(save(weights))
            content = manifest | {"version": name, "sha256": sha256(folder / _WEIGHTS)}
            write_json(folder / _MANIFEST, content | {_SEAL: _seal(content)})
        self._point_at(name)
        self._prune()
        return _whole_version(self.folder / name)

    def make_live(self, name: str) -> ModelVersion:
        """Make an existing version live.

        Raises `ModelError` as `find` does, when the weights are damaged, and when it was trained on images alone and
        would take the place of one that segments.
        """
        version = self.find(name)
        with self._turn():
            version.check_weights()
            if not self._may_follow(version):
                raise ModelError(f"model version {name} was trained on images alone and segments nothing")
            self._point_at(name)
        return version

    def rollback(self) -> ModelVersion:
        """Make `former` live. Raises `ModelError` when there is none."""
        if len(self.history()) > 1:
            with self._turn():
                if former := self.former():
                    history = self.history()
                    self._write_history(history[: history.index(former.name) + 1])
                    return former
        raise ModelError(f"{self.folder}: there is no earlier version to go back to")

    def former(self, is_whole: Callable[[ModelVersion], bool] = ModelVersion.is_whole) -> ModelVersion | None:
        """The last one before the live version that was live and could be so again.

        Passed over are those of which `is_whole` says no, and where a version segments, those that do not.
        """
        earlier = (_read_version(self.folder / name) for name in reversed(self.history()[:-1]))
        fitting = (version for version in earlier if version and self._may_follow(version) and is_whole(version))
        return next(fitting, None)

    def history(self) -> list[str]:
        """Names of the versions that were live, the live one last."""
        if not (self.folder / _POINTER).exists():
            return []
        if names := self._pointed_at():
            return names
        # It is not known which ones were; one that segments nothing takes no other one's place.
        return [version.name for version in sorted(self.versions(), key=lambda one: (one.segments, one.name))]

    def last_change(self) -> Hashable:
        """Another value whenever a version was made live."""
        try:
            pointer = (self.folder / _POINTER).stat()
        except FileNotFoundError:
            return None
        return pointer.st_mtime_ns, pointer.st_ino

    def pointer_fault(self) -> str | None:
        """Why it is not known which version is live, in words; none when it is, or nothing was published."""
        pointer = self.folder / _POINTER
        if not pointer.exists() or self._pointed_at():
            return None
        live = self.live()
        serves = f"version {live.name}, the newest whole one, serves" if live else "no version is whole"
        return f"{pointer.name} is damaged, so {serves}; to mend it make a version live, or train"

    def _pointed_at(self) -> list[str]:
        pointer = read_json(self.folder / _POINTER)
        history = pointer.get("history") if isinstance(pointer, dict) else None
        return [name for name in history if isinstance(name, str)] if isinstance(history, list) else []

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock of the writers, which the system releases when a process ends, however it ends."""
        lock = filelock.FileLock(self.folder / "lock", timeout=_LONGEST_WAIT_SECONDS)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ModelError(
                f"{self.folder}: another process has been writing there for {_LONGEST_WAIT_SECONDS:.0f} s; try again"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _may_follow(self, version: ModelVersion) -> bool:
        """Whether there is no harm in its segmenting nothing, if it does not."""
        return version.segments or not any(lived.segments for lived in self.lived())

    def _point_at(self, name: str) -> None:
        self._write_history([*(earlier for earlier in self.history() if earlier != name), name])

    def _write_history(self, names: list[str]) -> None:
        kept = set(self.names())
        write_json(self.folder / _POINTER, {"live": names[-1], "history": [name for name in names if name in kept]})

    def _prune(self) -> None:
        """Remove what is beyond `keep`, never the live version or the one that was live before it.

        What was gone back from goes first, then what was followed by another version of the same training, the oldest
        first: so a long training does not push out what others have left.
        """
        versions, history = {version.name: version for version in self.versions()}, self.history()
        lived = [name for name in history if name in versions]
        last = {_training_of(versions[name]): name for name in lived}
        followed = [name for name in lived if last[_training_of(versions[name])] != name]
        removable = [*sorted(set(versions) - set(lived)), *followed, *sorted(set(lived) - set(followed))]
        for name in [name for name in removable if name not in history[-2:]][: max(0, len(versions) - self.keep)]:
            shutil.rmtree(versions[name].folder, ignore_errors=True)


def _training_of(version: ModelVersion) -> str:
    """Which training made it; a version that does not say is one of its own."""
    return str(version.manifest.get("training", version.name))


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
    return _whole_version(folder)


def load_weights(network: nn.Module, version: ModelVersion) -> None:
    """Load a version's weights after checking their SHA-256. Raises `ModelError`."""
    version.check_weights()
    try:
        network.load_state_dict(load_file(version.weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{version.weights}: cannot be loaded ({str(error).splitlines()[0]})") from None


def _whole_version(folder: Path) -> ModelVersion:
    version = _read_version(folder)
    if version is None:
        raise ModelError(
            f"{folder / _MANIFEST}: gone, damaged or of another version; roll back to another model version"
        )
    return version


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
