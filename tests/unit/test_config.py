"""Settings: what is impossible is refused in words, with the key, before anything is computed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vqseg.config import Config, load_config, option_names, preset_names
from vqseg.errors import ConfigError


def test_settings_never_change_after_reading() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.train.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.train = config.train  # type: ignore[misc]


def test_every_option_has_a_name_a_default_and_can_be_set_to_it() -> None:
    config = Config()
    for key in option_names():
        section, name = key.split(".")
        assert load_config(overrides={key: getattr(getattr(config, section), name)}) == config
    assert len(option_names()) == sum(len(section) for section in config.model_dump().values())


def test_settings_survive_a_manifest() -> None:
    config = load_config(overrides={"data.labels": {"b": 2, "a": 1}, "data.window": (-1000, 400), "train.seed": 3})
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert list(config.data.labels) == ["a", "b"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("train.learning_rate", "1e-3", 0.001),
        ("data.labels", "{lung: 1, tumour: 2}", {"lung": 1, "tumour": 2}),
        ("data.patch_size", "[16, 24, 32]", (16, 24, 32)),
        ("data.window", "[-1000, 400]", (-1000.0, 400.0)),
        ("data.slice_axis", "null", None),
        ("train.mixed_precision", "false", False),
        ("loss.segmentation", "ce", "ce"),
        ("data.spacing", "native", "native"),
        ("tracking.to", "[mlflow, tensorboard, mlflow]", ("mlflow", "tensorboard")),
        ("tracking.to", "mlflow", ("mlflow",)),
        ("tracking.to", "none", ()),
        ("tracking.to", "null", ()),
        ("tracking.to", "[]", ()),
    ],
)
def test_values_of_the_command_line_are_read_as_yaml(key: str, text: str, value: Any) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config(overrides={key: text}), section), name) == value


@pytest.mark.parametrize(
    "key", ["nonsense", "train.nonsense", "nonsense.steps", "steps", "train", "train.steps.x", "", "train."]
)
def test_unknown_option_lists_the_known_ones(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={key: "1"})
    assert repr(key) in str(caught.value)
    assert all(name in str(caught.value) for name in option_names())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", "0"),
        ("train.steps", "many"),
        ("train.steps", ""),
        ("train.steps", "[1"),
        ("train.seed", "-1"),
        ("train.learning_rate", ".nan"),
        ("train.learning_rate", ".inf"),
        ("train.teacher_decay", "1"),
        ("perturbation.rate", "1.1"),
        ("loss.segmentation", "mse"),
        ("data.spatial_dims", "4"),
        ("data.slice_axis", "3"),
        ("data.patch_size", "[8, 8]"),
        ("data.labels", "{a: 1, b: 3}"),
        ("data.labels", "{a: 0}"),
        ("data.labels", "{a: 1, b: 1}"),
        ("data.labels", "{background: 1}"),
        ("data.spacing", "[1, 1]"),
        ("model.channels", "[8]"),
        ("model.first_quantized_level", "4"),
    ],
)
def test_impossible_value_is_refused_with_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.").split(r"\.")[0]) as caught:
        load_config(overrides={key: value})
    assert "\n" not in str(caught.value).split("parsed")[0]


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.patch_size": "[0, 8, 8]"},
        {"data.patch_size": "[-8, 8, 8]"},
        {"data.spacing": "[-1, 1, 1]"},
        {"data.window": "[400, -1000]"},
        {"data.window": "[5, 5]"},
        {"model.channels": "[0, 8]"},
        {"views.flip_axes": "[3]"},
        {"views.flip_axes": "[-1]"},
        {"views.flip_axes": "[2]", "data.spatial_dims": "2"},
        {"data.slice_axis": "1", "data.spatial_dims": "3"},
        {"data.patch_size": "[20, 20, 20]", "model.channels": "[4, 8, 16, 32]"},
        {"data.labels": {str(value): value for value in range(1, 257)}},
    ],
    ids=lambda overrides: str(overrides)[:50],
)
def test_what_would_fail_in_the_middle_of_a_training_is_refused_at_the_start(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load_config(overrides=overrides)


def test_presets_are_valid_and_overrides_win() -> None:
    assert set(preset_names()) >= {"lung_tumour_ct", "cardiac_mr", "hippocampus_mr", "generic_ct", "generic_mr"}
    for name in preset_names():
        preset = load_config(name)
        assert preset != Config()
        assert load_config(name, {"train.steps": 3}) == preset.model_copy(
            update={"train": preset.train.model_copy(update={"steps": 3})}
        )


@pytest.mark.parametrize("name", preset_names())
def test_every_setting_of_a_preset_stands_below_a_sentence_why(name: str) -> None:
    """One sentence may be for several settings in a row."""
    above = ""
    text = (resources.files("vqseg") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("  ") and not line.lstrip().startswith("#"):
            assert above.lstrip().startswith("#"), line
        else:
            above = line


def test_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "my settings.yaml"
    path.write_text(yaml.safe_dump({"train": {"steps": 5, "seed": 9}}), encoding="utf-8")
    config = load_config(path, {"train.seed": "2"})
    assert (config.train.steps, config.train.seed) == (5, 2)
    path.write_text("", encoding="utf-8")
    assert load_config(path) == Config()


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1", "3", "train: 3", "train: null", "nonsense: {a: 1}", "train: {nonsense: 1}", "\0", "1: {a: 1}"],
)
def test_bad_settings_file_is_refused_in_words(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(path)


def test_settings_that_are_not_there_list_the_presets(tmp_path: Path) -> None:
    for source in ("no_such_preset", tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(ConfigError, match=preset_names()[0]):
            load_config(source)


def test_yaml_never_makes_objects(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"train: {{steps: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']}}", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(path)
    assert not (tmp_path / "made").exists()
