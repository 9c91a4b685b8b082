"""The option `--set KEY=VALUE`, for the scripts that have it."""

from __future__ import annotations

import argparse

from vqseg.errors import ConfigError
from vqseg.settings_source import key_and_value


def add_settings(parser: argparse.ArgumentParser, words: str = "override a setting") -> None:
    """Add the option; `settings` is a list of keys and values, which `dict` takes."""
    several = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--set", dest="settings", type=_setting, metavar="KEY=VALUE", help=words, **several)


def _setting(text: str) -> tuple[str, str]:
    try:
        return key_and_value(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
