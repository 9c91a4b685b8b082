"""Selection on a real datastore and real models, without a server."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from workplaces import RAMP, noise

from vqseg.active.by_uncertainty import ClaSPPE
from vqseg.active.strategies import REVIEWS, STRATEGIES, make_strategy
from vqseg.data.reading import read_image
from vqseg.errors import ConfigError, ModelError


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_is_served_and_says_why(five: Any, name: str) -> None:
    reply = five.next(name)
    assert reply["id"] in "abc"
    assert (reply["strategy_used"], reply["model_version"]) == (name, "0001")
    assert (reply["unlabelled"], reply["missing"], reply["rank"]) == (3, 0, 1)
    assert reply["scored"] == (0 if name == "uniform" else 3)
    assert reply["reason"]
    assert len(reply["parts"]) <= 3
    assert isinstance(reply["score"], float)
    assert "note" not in reply


def test_disagreement_is_told_with_the_codes_it_was_drawn_from(five: Any) -> None:
    network = five.live.predictor().network
    strength = network.qpm.strength(network.quantizer.codebook()).replacement_codes
    for reason in (five.next("perturbation")["reason"], five.page("perturbation")["studies"][0]["reason"]):
        assert f"replacement codes: {strength:.1f})" in reason


def test_batches_are_chosen_by_the_score_that_was_set(place: Any, workplace: Any) -> None:
    place.add(a=noise(0), b=RAMP, c=noise(1))
    place.publish()
    by_draws = workplace(batches_of="perturbation")
    by_draws.score(strategy="stochastic_batches")
    page = by_draws.page("stochastic_batches")
    assert (page["strategy_used"], page["scored"], page["missing"]) == ("stochastic_batches", 3, 0)
    scores = {study["id"]: study["score"] for study in by_draws.page("perturbation")["studies"]}
    assert {study["id"]: study["score"] for study in page["studies"]} == pytest.approx(scores)
    by_rarity = workplace(batches_of="codebook_rarity")
    place.publish(**{"model.quantized": False})
    assert "no codebook" in by_rarity.page("stochastic_batches")["note"]


@pytest.mark.parametrize("name", ["codebook_rarity", "codebook_coverage", "coreset"])
def test_the_labelled_studies_count(place: Any, name: str) -> None:
    """Of two open studies the one that is the same as the labelled one comes last."""
    place.add(a_same=noise(0), b_other=RAMP, labelled=noise(0))
    place.label("labelled", noise(0) > 1)
    place.publish()
    late = place.next(name, "late", seconds=0)
    assert late["strategy_used"] == "uniform"
    assert "labelled studies not scored yet: 1" in late["note"]
    assert late["missing"] == 3
    place.reservations = place.module("reservations").Reservations(60)
    reply = place.next(name)
    assert (reply["id"], reply["strategy_used"], reply["scored"], reply["rank"]) == ("b_other", name, 2, 1)
    if name != "coreset":
        assert 1 <= len(reply["parts"]) <= 3
        assert all(part.startswith("code ") and value > 0 for part, value in reply["parts"].items())
        assert "codes" in reply["reason"]


@pytest.mark.parametrize("name", ["codebook_rarity", "codebook_coverage", "coreset"])
def test_what_another_client_holds_counts_as_labelled(place: Any, name: str) -> None:
    """Of what is the same as its study there is enough."""
    place.add(a1=noise(0), a2=noise(0), b1=RAMP, b2=RAMP, known=noise(3))
    place.label("known", noise(3) > 1)
    place.publish()
    replies = [place.next(name, client) for client in ("ada", "bob")]
    assert [reply["strategy_used"] for reply in replies] == [name, name]
    assert {reply["id"] for reply in replies} == {"a1", "b1"}


def test_clasp_pe_follows_its_turns_and_its_schedule(five: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of five studies are labelled, then one is reserved: the third pick, for all structures, then the fourth."""
    pools, scorer = [], ClaSPPE.scorer
    monkeypatch.setattr(
        ClaSPPE, "scorer", lambda self, pool, generator: pools.append(pool) or scorer(self, pool, generator)
    )
    reasons = [five.next("clasp_pe", client)["reason"] for client in ("ada", "bob")]
    assert "all structures together" in reasons[0]
    assert "all structures together" not in reasons[1]
    assert "it is the turn of" in reasons[1]
    assert [pool.progress for pool in pools] == [2 / 5, 2 / 5]


def test_studies_are_compared_by_one_version_alone(five: Any) -> None:
    """One is published while the former one looks at a study for a request."""
    made, looked = five.live.signals, []

    def look_then_publish(*arguments: Any, **options: Any) -> Any:
        if len(looked) == 2:
            five.publish(seed=1)
        looked.append(signals := made(*arguments, **options))
        return signals

    five.live.signals = look_then_publish
    reply = five.next("codebook_entropy")
    assert (reply["model_version"], reply["scored"], reply["missing"]) == ("0002", 3, 0)
    assert len(looked) == 5  # the two that the former version had seen again
    known = {study["id"]: study["score"] for study in five.page("codebook_entropy")["studies"]}
    assert five.score()["scored"] == 3
    again = {study["id"]: study["score"] for study in five.page("codebook_entropy")["studies"]}
    assert set(known) == {"a", "b", "c"}
    assert known == again
    assert reply["score"] == again[reply["id"]]


def test_uniform_gives_a_client_its_own_study_again(place: Any) -> None:
    place.add(**{f"case{number}": noise(0) for number in range(20)})
    assert len({place.next("uniform")["id"] for _ in range(5)}) == 1


def test_a_model_without_a_codebook_is_asked_for_what_it_has(five: Any) -> None:
    five.publish(**{"model.quantized": False})
    for name in STRATEGIES:
        reply = five.next(name)
        needs_codebook = make_strategy(name).needs_codebook()
        served = name if not needs_codebook else "uniform"
        assert reply["strategy_used"] == served
        assert ("no codebook" in reply.get("note", "")) == needs_codebook


def test_nothing_left_is_an_empty_reply(place: Any) -> None:
    place.add(one=noise(0), two=noise(1), broken=noise(2))
    place.damage("broken")
    given = [place.next("codebook_entropy", name) for name in "abc"]
    assert {reply.get("id") for reply in given} == {"one", "two", None}
    assert given[2] == {}


@pytest.mark.parametrize("name", [*sorted(STRATEGIES), *REVIEWS])
def test_an_empty_pool(place: Any, name: str) -> None:
    place.publish()
    assert place.next(name) == {}
    page = place.page(name)
    assert (page["total"], page["pages"], page["studies"]) == (0, 0, [])
    assert place.score() == {"scored": 0, "missing": 0, "left_out": {}}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_pool_of_one(place: Any, name: str) -> None:
    place.add(only=noise(0))
    place.publish()
    reply = place.next(name)
    assert (reply["id"], reply["strategy_used"]) == ("only", name)


def test_equal_studies_are_offered_by_id(place: Any) -> None:
    place.add(c=noise(0), a=noise(0), b=noise(0))
    place.publish()
    place.score()
    for name in ("codebook_entropy", "codebook_rarity", "codebook_coverage", "predictive_entropy", "coreset"):
        assert [study["id"] for study in place.page(name)["studies"]] == ["a", "b", "c"]
    assert [place.next("codebook_entropy", client)["id"] for client in "xyz"] == ["a", "b", "c"]


def test_an_unreadable_study_is_skipped_and_named(five: Any) -> None:
    five.damage("a")
    reply = five.next("codebook_entropy")
    assert reply["id"] in "bc"
    assert "left out: a (it cannot be read" in reply["note"]
    assert str(five.folder) not in reply["note"]
    assert list(five.score()["left_out"]) == ["a"]
    page = five.page("codebook_entropy")
    assert (list(page["left_out"]), page["scored"], page["missing"]) == (["a"], 2, 0)
    assert {study["id"] for study in page["studies"]} == {"b", "c"}


def test_pages_are_the_whole_list_in_order(place: Any) -> None:
    place.add(**{f"s{number}": noise(number) for number in range(7)})
    place.publish()
    place.score()
    whole = place.page("codebook_entropy")["studies"]
    pages = [place.page("codebook_entropy", page, 3) for page in (1, 2, 3, 4)]
    assert [len(page["studies"]) for page in pages] == [3, 3, 1, 0]
    assert list(itertools.chain.from_iterable(page["studies"] for page in pages)) == whole
    assert {page["pages"] for page in pages} == {3}
    assert [study["rank"] for study in whole] == list(range(1, 8))
    assert [study["score"] for study in whole] == sorted((study["score"] for study in whole), reverse=True)
    assert place.next("codebook_entropy")["id"] == whole[0]["id"]
    # It reserved nothing, and what others hold stands in it.
    assert place.page("codebook_entropy")["studies"] == whole
    drawn = [place.page("uniform", page, 3)["studies"] for page in (1, 2, 3)]
    assert len({study["id"] for page in drawn for study in page}) == 7


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_the_list_shows_first_is_offered_and_asked_again_has_the_same_reason(place: Any, name: str) -> None:
    place.add(**{f"s{number}": noise(number) for number in range(7)}, known=noise(7))
    place.label("known", noise(7) > 1)
    place.publish()
    place.score(strategy=name)
    for _ in range(3):
        shown = place.page(name)["studies"][0]
        assert shown["rank"] == 1
        del shown["viewer"]
        for _ in range(2):
            offered = place.next(name)
            assert {key: offered[key] for key in shown} == shown
        place.label(shown["id"], noise(0) > 1)


def test_strategies_do_not_draw_alike(place: Any) -> None:
    """Of studies that look the same each has an order of its own, and not that of another one backwards."""
    place.add(**{f"s{number}": noise(0) for number in range(12)})
    place.publish()
    place.score()
    drawn = ("uniform", "foreground_random", "power_entropy")
    orders = [[study["id"] for study in place.page(name)["studies"]] for name in drawn]
    assert len({min(order, order[::-1]) for order in map(tuple, orders)}) == len(drawn)


def test_what_is_known_to_be_unreadable_is_named_and_not_listed_by_chance_either(five: Any) -> None:
    five.damage("b")
    five.score()
    page = five.page("uniform")
    assert ({study["id"] for study in page["studies"]}, page["total"]) == ({"a", "c"}, 2)
    assert [study["rank"] for study in page["studies"]] == [1, 2]
    assert list(page["left_out"]) == ["b"]


def test_chance_draws_anew_after_every_label(place: Any) -> None:
    """The place by id of what comes first is not the same again and again."""
    place.add(**{f"s{number}": noise(0) for number in range(10)})
    places = []
    for _ in range(6):
        image = place.next("uniform")["id"]
        places.append(sorted(place.datastore.get_unlabeled_images()).index(image))
        place.label(image, noise(0) > 1)
    assert len(set(places)) > 3


def test_a_ranking_lets_no_model_work(five: Any) -> None:
    page = five.page("predictive_entropy")
    assert (page["scored"], page["missing"], page["strategy_used"]) == (0, 3, "uniform")
    assert not (five.run / "scoring" / "models").exists()
    assert page["scoring"] == {"state": "none"}


def test_a_ranking_without_a_model(place: Any) -> None:
    place.add(a=noise(0), b=noise(1))
    page = place.page("codebook_rarity")
    assert (page["total"], page["model_version"], page["strategy_used"]) == (2, None, "uniform")
    assert "no trained model yet" in page["note"]
    review = place.page("disagreement")
    assert (review["total"], review["model_version"]) == (0, None)
    assert "no trained model yet" in review["note"]
    with pytest.raises(ModelError, match="no trained model yet"):
        place.next("disagreement")


def test_the_label_that_differs_most_from_the_model_is_reviewed(place: Any) -> None:
    place.add(agrees=noise(0), differs=noise(0), open=noise(1))
    place.publish()
    own = place.live.predictor().predict(read_image(place.folder / "agrees.nii.gz")).mask
    place.label("agrees", own)
    place.label("differs", np.where(own == 1, 2, 1))
    reply = place.next("disagreement")
    assert (reply["id"], reply["labelled"], reply["scored"], reply["score"]) == ("differs", 2, 2, 1.0)
    assert "differ most at lung: Dice 0.000" in reply["reason"]
    assert place.next("disagreement", "another reader")["id"] == "agrees"
    place.label("differs", own)  # corrected
    place.score()
    assert [study["score"] for study in place.page("disagreement")["studies"]] == [0.0, 0.0]


def test_a_review_gives_up_no_study_that_is_being_labelled(five: Any) -> None:
    held = five.next("codebook_rarity", "ada")["id"]
    assert five.next("disagreement", "ada")["id"] in ("known", "other")
    assert five.next("codebook_rarity", "bob")["id"] != held
    assert five.next("codebook_rarity", "ada")["id"] == held


def test_a_client_keeps_its_study_while_a_new_version_has_not_seen_it(five: Any) -> None:
    held = five.next("codebook_entropy", "ada")["id"]
    five.publish(seed=1)
    others = five.selector.select("codebook_entropy", five.datastore, seconds=0)
    assert (others.strategy, others.scored) == ("uniform", frozenset())
    for study in sorted({"a", "b", "c"} - {held}):
        image = five.datastore.get_image_uri(study)
        signals, model = five.live.signals(read_image(Path(image)), 0, torch.Generator())
        five.cache.keep_signals(model, five.cache.checksums.of(Path(image)), signals)
    reply = five.next("codebook_entropy", "ada", seconds=0)
    assert (reply["id"], reply["rank"], reply["score"], reply["parts"]) == (held, None, None, {})
    assert (reply["scored"], reply["missing"], reply["model_version"]) == (2, 1, "0002")
    assert "you hold it already" in reply["reason"]
    assert five.next("codebook_entropy", "bob", seconds=0)["id"] != held


def test_a_label_that_does_not_fit_is_left_out_of_the_review(five: Any) -> None:
    label = five.folder / "labels" / "final" / "known.nii.gz"
    nib.save(nib.Nifti1Image(np.full((16, 16, 16), 7, np.uint8), np.eye(4)), label)
    reply = five.next("disagreement")
    assert reply["id"] == "other"
    assert "left out: known" in reply["note"]
    assert "value 7" in reply["note"]


def test_two_clients_at_the_same_instant_get_different_studies(five: Any) -> None:
    five.score()
    barrier = threading.Barrier(3)

    def ask(client: str) -> str:
        barrier.wait()
        return five.next("codebook_entropy", client)["id"]

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(ask, ("one", "two", "three"))) == {"a", "b", "c"}


def test_a_study_that_is_labelled_while_one_is_chosen_is_not_offered(five: Any) -> None:
    select, best = five.selector.select, []

    def select_then_label(*arguments: Any, **named: Any) -> Any:
        selection = select(*arguments, **named)
        best.extend(selection.ranking.ids[:2])
        for image in best:
            five.label(image, noise(0) > 1)
        return selection

    five.selector.select = select_then_label
    reply = five.next("codebook_entropy")
    assert reply["rank"] == 3
    assert {reply["id"], *best} == {"a", "b", "c"}


def test_a_default_that_is_no_strategy_is_refused_with_the_list(place: Any) -> None:
    with pytest.raises(ConfigError, match=r"active\.strategy: the server has no strategy 'magic'; it has: codebook"):
        place.module("strategies").default_strategy("magic")


def test_a_study_too_large_for_the_memory_is_left_out(five: Any) -> None:
    signals = five.live.signals

    def short_of_memory(volume: Any, *others: Any, **options: Any) -> Any:
        if Path(volume.source).name.startswith("b."):
            raise RuntimeError("not enough memory: you tried to allocate 10000000000 bytes")
        return signals(volume, *others, **options)

    five.live.signals = short_of_memory
    assert five.score()["scored"] == 2
    reply = five.next("codebook_rarity")
    assert reply["scored"] == 2
    assert "b (the model cannot look at it" in reply["note"]


@pytest.mark.parametrize("name", ["codebook_rarity", "disagreement"])
def test_a_study_that_takes_more_memory_than_one_may_is_left_out_by_its_header(workplace: Any, name: str) -> None:
    place, shape = workplace(memory_gib=0.25), (150, 150, 100)
    place.add(a=noise(0), known=noise(1), open=np.zeros(shape), marked=np.zeros(shape))
    place.label("known", noise(1) > 1)
    place.label("marked", np.ones(shape))
    place.publish()
    large = "marked" if name == "disagreement" else "open"
    reply = place.next(name)
    assert reply["id"] in ("a", "known")
    assert f"{large} ({large}.nii.gz: segmenting it takes" in reply["note"]
    assert place.score()["scored"] == 1
    assert "--conf infer_memory_gib allows 0.25" in place.page(name)["left_out"][large]


def test_what_is_chosen_by_chance_is_not_read_either_when_it_is_too_large(workplace: Any) -> None:
    place = workplace(memory_gib=0.001)
    place.add(small=noise(0))
    place.reservations = place.module("reservations").Reservations(0)  # else the first choice is kept
    replies = []
    for number in range(5):
        place.add(**{f"large{number}": np.zeros((64, 64, 64))})
        replies.append(place.next("uniform"))
    assert {reply["id"] for reply in replies} == {"small"}
    found = "left out: large{0} (large{0}.nii.gz: reading it takes"
    assert any(found.format(number) in reply.get("note", "") for number in range(5) for reply in replies)


def test_a_page_of_the_ranking_reads_no_image(five: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(five.module("checksums"), "sha256", read.append)
    five.page("codebook_rarity")
    assert read == []
