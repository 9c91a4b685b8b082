"""Options on start and where the models go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vqseg.errors import ConfigError


def test_names_become_values_in_their_order(app_module: Any) -> None:
    options = app_module("options").read_options({"labels": "lung, tumour", "train.steps": "7", "server_mode": "true"})
    config = options.config({"train.seed": 3})
    assert config.data.labels == {"lung": 1, "tumour": 2}
    assert (config.train.steps, config.train.seed) == (7, 3)


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"lables": "a"}, "unknown option 'lables'; known options: labels"),
        ({"labels": "a,,b"}, "labels='a,,b'"),
        ({"labels": "a,a"}, "different names"),
        ({"labels": "background,a"}, "background"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"score_seconds": "soon"}, "score_seconds='soon'"),
        ({"score_seconds": "nan"}, "score_seconds='nan'"),
        ({"preset": "nowhere"}, "nowhere"),
        ({"validation_fraction": "2"}, "data.validation_fraction"),
        ({"train.steps": "0"}, "train.steps"),
        ({"open_routes": "logs,everything"}, "open_routes='logs,everything'.*archives,logs"),
        ({"open_network": "yes"}, "open_network='yes'"),
        ({"cors_origins": "*"}, r"cors_origins='\*'"),
        ({"cors_origins": "https://viewer.example.org/"}, "cors_origins='https://viewer.example.org/'"),
    ],
)
def test_wrong_options_are_refused(app_module: Any, conf: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        app_module("options").read_options(conf)


def test_nothing_is_open_by_itself(app_module: Any) -> None:
    read = app_module("options").read_options
    options = read({})
    assert (options.accounts, options.open_routes, options.open_network) == (None, frozenset(), False)
    assert options.cors_origins == frozenset()
    options = read({"open_routes": "logs, reload", "open_network": "true", "accounts": "accounts.json"})
    assert options.open_routes == {"logs", "reload"}
    assert options.open_network
    assert options.accounts == Path("accounts.json").resolve()


def test_two_data_sets_never_share_a_model(app_module: Any) -> None:
    options = app_module("options").Options({})
    one, other = options.run_folder("/app", "/a/chest scans"), options.run_folder("/app", "/b/chest scans")
    assert one != other
    assert one.parent == Path("/app/model")
    assert one.name.startswith("chest-scans-")
    assert options.run_folder("/app", "/a/chest scans") == one
