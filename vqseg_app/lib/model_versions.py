"""What is told of the versions of the model, and of what sets two of them apart: all of it from their manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqseg.errors import ModelError
from vqseg.store import ModelVersion

from .checksums import Checksums
from .live_model import LiveModel


class ModelVersions:
    """Args: the `live` model and its store; `checksums`, so that weights are read once and not for every list."""

    def __init__(self, live: LiveModel, checksums: Checksums) -> None:
        self._live, self._checksums = live, checksums

    def overview(self) -> dict[str, Any]:
        """The version that answers, the one to which a rollback would go, and all there are, the newest first."""
        names, readable = self._live.store.names(), {known.name: known for known in self._live.store.versions()}
        live, former = self._live.version(), self._live.store.former(self._is_whole)
        return {
            "live": live and live.name,
            "rollback_to": former and former.name,
            "versions": [self._entry(name, readable.get(name), live) for name in reversed(names)],
        }

    def details(self, name: str) -> dict[str, Any]:
        """An entry of the overview, with scores by study, settings and software. Raises `UnknownError`."""
        try:
            version = self._live.find(name)
        except ModelError:
            version = None
        manifest = version.manifest if version else {}
        return {
            **self._entry(name, version, self._live.version()),
            "per_study": manifest.get("validation", {}).get("per_study", {}),
            "settings": {
                section: {key: _without_place(value) for key, value in keys.items()}
                for section, keys in manifest.get("config", {}).items()
            },
            "software": manifest.get("software", {}),
        }

    def comparison(self, first: str, second: str) -> dict[str, Any]:
        """What two versions differ in; a pair is in their order, and null what a version does not say.

        Scores by study are those of the studies that both were validated on. Raises `UnknownError` and `ModelError`.
        """
        manifests = [self._live.find(name).manifest for name in (first, second)]
        scores = [manifest.get("validation", {}) for manifest in manifests]
        settings = _pairs(*(dict(_settings(manifest)) for manifest in manifests))
        one, other = (set(manifest.get("data", {}).get("labelled", ())) for manifest in manifests)
        per_study = _pairs(*(score.get("per_study", {}) for score in scores))
        return {
            "method": [manifest.get("method") for manifest in manifests],
            "settings": {key: pair for key, pair in settings.items() if pair[0] != pair[1]},
            "dice": [score.get("dice") for score in scores],
            "per_class": _pairs(*(score.get("per_class", {}) for score in scores)),
            "per_study": {study: pair for study, pair in per_study.items() if None not in pair},
            "labelled_only_in": [sorted(one - other), sorted(other - one)],
        }

    def _entry(self, name: str, version: ModelVersion | None, live: ModelVersion | None) -> dict[str, Any]:
        """`version` is none where the manifest is damaged; then nothing else is known of it."""
        manifest = version.manifest if version else {}
        validation, data = manifest.get("validation", {}), manifest.get("data", {})
        return {
            "version": name,
            "live": live is not None and name == live.name,
            "created": manifest.get("created"),
            "method": manifest.get("method"),
            "step": manifest.get("step"),
            "dice": validation.get("dice"),
            "per_class": validation.get("per_class", {}),
            "validated_on": validation.get("validated_on"),
            "labelled": len(data["labelled"]) if "labelled" in data else None,
            "unlabelled": data.get("unlabelled"),
            "data_sha256": data.get("sha256"),
            "segments": version.segments if version else None,
            "damaged": version is None or not self._is_whole(version),
        }

    def _is_whole(self, version: ModelVersion) -> bool:
        if self._live.is_damaged(version):
            return False
        try:
            return self._checksums.of(version.weights) == version.manifest.get("sha256")
        except OSError:
            return False


def _settings(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, keys in manifest.get("config", {}).items():
        for key, value in keys.items():
            yield f"{section}.{key}", _without_place(value)


def _without_place(value: Any) -> Any:
    """Of a file of the server only its name."""
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Of every key in either, what both say."""
    return {key: [one.get(key), other.get(key)] for key in {**one, **other}}
