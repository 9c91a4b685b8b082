"""Where settings are read from: a preset of the package, a YAML file, or words of a command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from vqseg.errors import ConfigError

__all__ = ["key_and_value", "preset_names", "read_settings"]


def preset_names() -> list[str]:
    """Names of the presets in the package."""
    return sorted(entry.name[:-5] for entry in _presets() if entry.name.endswith(".yaml"))


def read_settings(source: str | Path, sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Keys and values by section, of a preset's name or of a YAML file, not checked yet; `sections` is for the message.

    Raises `ConfigError`.
    """
    preset = resources.files("vqseg") / "presets" / f"{source}.yaml"
    try:
        if str(source) in preset_names():
            text = preset.read_text(encoding="utf-8")
        else:
            text = Path(source).read_text(encoding="utf-8")
        settings = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{source}: neither a preset ({', '.join(preset_names())}) nor a settings file that can be read"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
        raise ConfigError(f"{source}: expected sections ({', '.join(sections)}) with keys and values")
    return settings


def key_and_value(text: str) -> tuple[str, str]:
    """An override as it is given on a command line, `section.key=value`. Raises `ConfigError`."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"{text}: expected KEY=VALUE, for example train.seed=1")
    return key, value


def _presets() -> Iterator[Any]:
    return (resources.files("vqseg") / "presets").iterdir()
