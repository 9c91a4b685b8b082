"""Reservations, and the cache of what models say of studies."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqseg.inference.signals import StudySignals


def test_a_study_is_not_handed_to_two_clients(app_module: Any) -> None:
    now = [0.0]
    held = app_module("reservations").Reservations(60, lambda: now[0])
    assert held.take_first(["a", "b"], "one") == "a"
    assert held.take_first(["a", "b"], "one") == "a"
    assert held.take_first(["a", "b"], "two") == "b"
    assert held.take_first(["a", "b"], "three") is None
    assert held.of_others("one") == {"b"}
    now[0] = 61.0
    assert held.take_first(["a", "b"], "three") == "a"


def test_a_client_holds_one_study_and_gets_it_again(app_module: Any) -> None:
    held = app_module("reservations").Reservations(60, lambda: 0.0)
    assert held.take_first(["a", "b", "c"], "one") == "a"
    assert held.take_first(["c", "b", "a"], "one") == "a"
    assert held.take_first(["c", "b"], "one") == "c"
    assert held.of_others("two") == {"c"}


def test_a_client_keeps_its_study_where_others_alone_are_ranked(app_module: Any) -> None:
    held = app_module("reservations").Reservations(60, lambda: 0.0)
    assert held.take_first(["a", "b", "c"], "one") == "a"
    assert held.take_first(["b", "c"], "one", keep={"a", "b", "c"}) == "a"
    assert held.take_first(["b", "c"], "two", keep={"a", "b", "c"}) == "b"
    assert held.take_first(["c"], "one", keep={"b", "c"}) == "c", "its own is no longer open"
    assert held.take_first([], "one", keep={"c"}) == "c"


def test_no_time_means_no_reservation(app_module: Any) -> None:
    held = app_module("reservations").Reservations(0, lambda: 0.0)
    assert [held.take_first(["a"], client) for client in ("one", "two")] == ["a", "a"]


def test_the_order_of_the_ids_says_nothing_of_the_fair_order(app_module: Any) -> None:
    in_fair_order = app_module("gathering").in_fair_order
    studies = [f"case_{number:03}" for number in range(200)]
    fair = in_fair_order(studies)
    assert fair == in_fair_order(reversed(studies))
    assert sorted(fair) == studies
    # Of the first fifty, about as many come from either half as a fair coin would give.
    assert 12 < sum(study < "case_100" for study in fair[:50]) < 38


CONTENT, OTHER = (f"{digit}" * 64 for digit in "12")


def signals(seed: int = 0) -> StudySignals:
    draw = np.random.default_rng(seed)
    return StudySignals(draw.integers(0, 9, 20), draw.random(20), draw.random(3), *draw.random((3, 2)), draw.random(3))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "case.nii.gz"
    path.write_bytes(b"voxels")
    return path


def cache_in(app_module: Any, folder: Path, tokens: int = 16) -> Any:
    """As another process or the next start of the server sees it."""
    return app_module("score_cache").ScoreCache(folder / "scoring", tokens)


def assert_same(one: Any, other: Any) -> None:
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_signals_belong_to_one_model_and_the_content_of_one_image(app_module: Any, image: Path) -> None:
    cache = cache_in(app_module, image.parent)
    kept = cache.keep_signals("0001-a", CONTENT, signals())
    for reader in (cache, cache_in(app_module, image.parent)):
        assert_same(reader.signals("0001-a", CONTENT), kept)
        assert reader.signals("0002-b", CONTENT) is None
        assert reader.signals("0001-a", OTHER) is None


def test_signals_without_draws_do_not_serve_who_needs_them(app_module: Any, image: Path) -> None:
    cache = cache_in(app_module, image.parent)
    cache.keep_signals("0001-a", CONTENT, signals())
    assert cache.signals("0001-a", CONTENT, draws=4) is None
    cache_in(app_module, image.parent).keep_signals("0001-a", CONTENT, signals(), draws=4)  # another process
    assert cache.signals("0001-a", CONTENT, draws=4).draws == 4
    assert cache.signals("0001-a", CONTENT).draws == 4
    assert cache.signals("0001-a", CONTENT, draws=8) is None


def test_the_entropy_follows_the_setting(app_module: Any, image: Path) -> None:
    before = cache_in(app_module, image.parent, 16).keep_signals("0001-a", CONTENT, signals())
    after = cache_in(app_module, image.parent, 4).signals("0001-a", CONTENT)
    assert (before.tokens, after.tokens) == (16, 4)
    assert after.rarefied_entropy < before.rarefied_entropy


def test_a_checksum_is_worked_out_once(app_module: Any, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = app_module("checksums")
    expected = module.Checksums(image.parent / "sums").of(image)
    hashed = []
    monkeypatch.setattr(module, "sha256", lambda path: hashed.append(path) or "0" * 64)
    known = module.Checksums(image.parent / "sums")
    assert [known.of(image), known.of(image)] == [expected, expected]
    assert hashed == []
    os.utime(image, ns=(1, 1))
    assert known.of(image) == "0" * 64
    next((image.parent / "sums").glob("*.json")).write_text('{"size": 6}', encoding="utf-8")
    assert module.Checksums(image.parent / "sums").of(image) == "0" * 64


def test_a_checksum_follows_the_content(app_module: Any, image: Path) -> None:
    known = app_module("checksums").Checksums(image.parent / "sums")
    first = known.of(image)
    os.utime(image, ns=(1, 1))
    assert known.known(image) is None
    copy = Path(shutil.copy(image, image.with_name("copy.nii.gz")))
    assert known.of(image) == known.of(copy) == known.known(image) == first
    image.write_bytes(b"others")
    assert known.of(image) != first


def test_the_checksum_of_a_series_outlives_its_file(app_module: Any, image: Path) -> None:
    """Where the PACS still has it, and only for so many slices."""
    module, folder = app_module("checksums"), image.parent / "sums"
    known = module.Checksums(folder)
    assert known.of_series("1.2 16") is None
    known.keep_series("1.2 16", image)
    known.keep_series("1.3 16", image)
    checksum = known.of(image)
    image.unlink()
    known.forget_gone({"1.2 16"})
    again = module.Checksums(folder)
    assert [again.of_series(name) for name in ("1.2 16", "1.2 17", "1.3 16")] == [checksum, None, None]


def test_checksums_of_files_that_are_gone_are_removed(app_module: Any, image: Path) -> None:
    module, folder = app_module("checksums"), image.parent / "sums"
    gone, known = Path(shutil.copy(image, image.with_name("gone.nii.gz"))), module.Checksums(folder)
    kept = known.of(image), known.of(gone)
    (folder / "damaged.json").write_text("[]", encoding="utf-8")
    gone.unlink()
    known.forget_gone()
    assert len(list(folder.iterdir())) == 1
    assert module.Checksums(folder).known(image) == kept[0]


def test_damaged_and_outdated_signals_are_not_used(app_module: Any, image: Path) -> None:
    cache = cache_in(app_module, image.parent)
    cache.keep_signals("0001-a", CONTENT, signals())
    cache.keep_label_dice("0001-a", CONTENT, OTHER, np.array([0.5, np.nan]))
    np.testing.assert_array_equal(cache.label_dice("0001-a", CONTENT, OTHER), [0.5, np.nan])
    models = image.parent / "scoring" / "models"
    for file in (models / "0001-a").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    assert cache_in(app_module, image.parent).signals("0001-a", CONTENT) is None
    assert cache.label_dice("0001-a", CONTENT, OTHER) is None
    cache.keep_signals("0002-b", CONTENT, signals())
    cache.forget_all_but("0002-b")
    assert [folder.name for folder in models.iterdir()] == ["0002-b"]


def test_what_cannot_be_kept_fails_nothing(app_module: Any, image: Path) -> None:
    (image.parent / "scoring").write_bytes(b"a file where the folder should be")
    cache = cache_in(app_module, image.parent)
    kept = cache.keep_signals("0001-a", CONTENT, signals())
    cache.keep_label_dice("0001-a", CONTENT, OTHER, np.zeros(2))
    cache.forget_all_but("0001-a")
    assert_same(cache.signals("0001-a", CONTENT), kept)
    progress = app_module("scoring_progress").ScoringProgress(image.parent / "scoring")
    with progress.running():
        pass
