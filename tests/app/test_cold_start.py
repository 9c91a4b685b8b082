"""The first studies to label, before there is a model that knows what to look for."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from workplaces import RAMP, noise

from vqseg.config import Active
from vqseg.errors import ConfigError, DataError, ModelError


@pytest.fixture
def place(workplace: Any) -> Any:
    place = workplace(cold_start_steps=3)
    place.add(a=noise(0), b=noise(0), c=RAMP)
    return place


def test_studies_are_compared_by_a_codebook_learnt_from_images_alone(place: Any) -> None:
    place.score()
    first = place.next("codebook_rarity", "one")
    assert (first["strategy_used"], first["scored"], first["missing"]) == ("codebook_rarity", 3, 0)
    assert "learnt from images alone" in first["note"]
    # Two are the same, so once one of them is held the other is worth less than the third.
    assert {first["id"], place.next("codebook_rarity", "two")["id"]} != {"a", "b"}


@pytest.mark.parametrize("name", ["predictive_entropy", "perturbation", "clasp_pe", "codebook_balanced"])
def test_what_needs_structures_is_replaced_and_the_note_says_so(place: Any, name: str) -> None:
    place.score()
    reply = place.next(name)
    assert reply["strategy_used"] == "typical"
    assert f"typical instead of {name}" in reply["note"]


def test_before_the_codebook_is_there_a_study_is_drawn_and_the_rest_asked_for(place: Any) -> None:
    """`missing` makes the app score, and scoring learns the codebook first."""
    reply = place.next("codebook_rarity")
    assert (reply["strategy_used"], reply["missing"]) == ("uniform", 3)
    assert "no trained model yet" in reply["note"]
    assert place.next("uniform")["missing"] == 0


def test_the_codebook_is_learnt_once(place: Any) -> None:
    place.score()
    versions = place.run / "cold_start" / "models"
    before = sorted(path.name for path in versions.iterdir())
    assert place.score()["scored"] == 3
    assert sorted(path.name for path in versions.iterdir()) == before


def test_the_first_trained_model_takes_its_place(place: Any) -> None:
    place.score()
    place.label("a", noise(0) > 1)
    place.publish()
    assert place.score()["scored"] == 2
    reply = place.next("predictive_entropy")
    assert reply["strategy_used"] == "predictive_entropy"
    assert "note" not in reply


def test_it_leaves_the_memory_once_a_training_has_published(place: Any) -> None:
    """By `comparing` alone, which the server asks all the time."""
    place.score()
    loaded = weakref.ref(place.cold_start.comparing().predictor())
    assert loaded() is not None
    place.publish()
    assert place.cold_start.comparing() is place.live
    gc.collect()
    assert loaded() is None


def test_a_model_that_is_published_meanwhile_ends_the_learning(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish_once() -> None:
        if place.live.version() is None:
            place.publish()

    monkeypatch.setattr(place.module("scoring"), "stop_without_server", publish_once)
    place.score()
    assert not list((place.run / "cold_start").glob("models/*"))
    assert place.next("predictive_entropy")["strategy_used"] == "predictive_entropy"


@pytest.mark.parametrize("name", ["predictive_entropy", "codebook_balanced", "nothing"])
def test_only_a_strategy_that_needs_no_model_fits(app_module: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=r"active\.cold_strategy.*codebook_coverage"):
        app_module("cold_start").cold_strategy(name)
    assert app_module("cold_start").cold_strategy(Active().cold_strategy) == Active().cold_strategy


def test_it_segments_nothing(place: Any) -> None:
    place.score()
    with pytest.raises(ModelError, match="no trained model yet"):
        place.live.predictor()
    with pytest.raises(ModelError, match="no trained model yet"):
        place.next("disagreement")


def test_without_it_studies_are_drawn(place: Any, workplace: Any) -> None:
    plain = workplace()
    reply = plain.next("codebook_rarity")
    assert (reply["strategy_used"], reply["missing"]) == ("uniform", 0)
    with pytest.raises(ModelError, match="no trained model yet"):
        plain.score()


def test_no_readable_image_is_said_in_words(place: Any) -> None:
    for study in "abc":
        place.damage(study)
    with pytest.raises(DataError, match="can be read"):
        place.score()
