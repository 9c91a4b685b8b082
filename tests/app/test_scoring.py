"""What the model says of every study: when it is worked out, kept and dropped, without a server."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from servers import APP
from workplaces import noise

from vqseg.active.strategies import STRATEGIES
from vqseg.errors import ModelError


def test_scoring_starts_anew_for_a_version_that_goes_live_meanwhile(five: Any) -> None:
    """The second version is published after the first study was scored by the first one."""
    keep, while_running = five.cache.keep_signals, []

    def publish_then_keep(*arguments: Any) -> Any:
        if not while_running:
            five.publish(seed=1)
        while_running.append(five.page("codebook_entropy")["scoring"])
        return keep(*arguments)

    five.cache.keep_signals = publish_then_keep
    assert five.score()["scored"] == 3
    assert [folder.name[:4] for folder in (five.run / "scoring" / "models").iterdir()] == ["0002"]
    assert while_running[0] == {"state": "running", "model_version": "0001", "done": 0, "total": 5, "message": ""}
    info = five.scoring().info()
    assert (info["state"], info["model_version"], info["done"], info["total"]) == ("done", "0002", 5, 5)


def test_a_version_that_is_live_again_is_another_state(five: Any) -> None:
    """The scoring that ran in between may have dropped what it said, for the other version was live at its end."""
    assert five.live.state() == (before := five.live.state())
    five.publish(seed=1)
    between = five.live.state()
    five.live.make_live("0001")
    assert len({before, between, five.live.state()}) == 3
    five.live.make_live("0002")
    five.live.rollback()
    back = five.live.state()
    assert back[0] == before[0]
    assert back not in (before, between)


def test_what_arrives_while_scoring_runs_is_scored_too(five: Any) -> None:
    keep, arrived = five.cache.keep_signals, []

    def submit_then_keep(*arguments: Any) -> Any:
        if not arrived:
            arrived.append(five.label("a", noise(0) > 1))
            five.add(late=noise(9))
        return keep(*arguments)

    five.cache.keep_signals = submit_then_keep
    assert five.score()["scored"] == 3
    assert {study["id"] for study in five.page("codebook_rarity")["studies"]} == {"b", "c", "late"}
    assert five.page("codebook_rarity")["missing"] == 0


def test_an_interrupted_scoring_goes_on_where_it_stood(five: Any) -> None:
    made = five.live.signals
    seen: list[int] = []

    def stop_at_the_third(*arguments: Any, **options: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return made(*arguments, **options)

    five.live.signals = stop_at_the_third
    with pytest.raises(KeyboardInterrupt):
        five.score()
    five.live.signals = lambda *arguments, **options: (seen.append(1), made(*arguments, **options))[1]
    five.score()
    assert len(seen) == 5


def test_one_scoring_at_a_time(five: Any) -> None:
    """Another one, of a server that is gone, may run on."""
    (folder := five.run / "scoring").mkdir(parents=True)
    with ThreadPoolExecutor(1) as threads:
        with FileLock(folder / ".lock"):
            second = threads.submit(five.score)
            time.sleep(1)
            assert not second.done()
            assert five.scoring().info()["state"] == "none"
        assert second.result(60)["scored"] == 3


def test_the_labelled_studies_are_scored_first(five: Any) -> None:
    """Most strategies say nothing without them."""
    made, seen = five.live.signals, []

    def watched(volume: Any, *others: Any, **options: Any) -> Any:
        seen.append(Path(volume.source).name.split(".")[0])
        return made(volume, *others, **options)

    five.live.signals = watched
    five.score()
    assert seen[:2] == ["known", "other"]
    assert sorted(seen[2:]) == ["a", "b", "c"]


def test_a_scoring_ends_when_its_server_is_gone(five: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has scored until then is kept."""
    process = five.module("process")
    monkeypatch.setattr(process, "is_child", lambda: True)
    monkeypatch.setattr(five.module("scoring"), "give_way", lambda niceness: None)
    keep = five.cache.keep_signals

    def keep_then_be_orphaned(*arguments: Any) -> Any:
        monkeypatch.setattr(process, "_PARENT", -1)
        return keep(*arguments)

    five.cache.keep_signals = keep_then_be_orphaned
    with pytest.raises(SystemExit, match="server is gone"):
        five.score()
    assert len(list((five.run / "scoring" / "models").glob("*/*.npz"))) == 1


def test_a_scoring_ends_in_the_middle_of_a_study_when_its_server_is_gone(
    five: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, made = five.module("process"), five.live.signals
    monkeypatch.setattr(process, "is_child", lambda: True)
    monkeypatch.setattr(five.module("scoring"), "give_way", lambda niceness: None)

    def orphaned(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(process, "_PARENT", -1)
        return made(*arguments, **options)

    five.live.signals = orphaned
    with pytest.raises(SystemExit, match="server is gone"):
        five.score()
    assert not list((five.run / "scoring").glob("models/*/*.npz"))


def test_a_scoring_that_fails_says_so(five: Any) -> None:
    weights = next((five.run / "models" / "0001").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="damaged"):
        five.score()
    info = five.scoring().info()
    assert info["state"] == "failed"
    assert "damaged" in info["message"]


def test_the_old_version_is_kept_until_the_new_one_has_seen_all(five: Any) -> None:
    five.score()
    five.publish(seed=1)
    five.next("codebook_entropy")
    models = five.run / "scoring" / "models"
    assert sorted(folder.name[:4] for folder in models.iterdir()) == ["0001", "0002"]
    five.score()
    assert [folder.name[:4] for folder in models.iterdir()] == ["0002"]


def test_scores_stay_when_the_server_starts_again(five: Any, workplace: Any) -> None:
    five.score(strategy="perturbation")
    scored = {name: five.page(name) for name in STRATEGIES}
    again = workplace()
    for name, page in scored.items():
        assert again.page(name) == page
        assert page["scored"] == (0 if name == "uniform" else 3)


def test_nothing_in_memory_hides_that_a_study_is_another_now(five: Any) -> None:
    def scores() -> dict[str, float]:
        five.score()
        return {study["id"]: study["score"] for study in five.page("codebook_entropy")["studies"]}

    before = scores()
    shutil.copy(five.folder / "b.nii.gz", five.folder / "a.nii.gz")
    after = scores()
    assert after["a"] == after["b"] == before["b"] != before["a"]


def test_an_inference_keeps_nothing_of_an_image_that_is_another_by_its_end(five: Any) -> None:
    image = five.folder / "a.nii.gz"
    guard = five.module("memory_guard").MemoryGuard()
    task = five.module("inference").VQSegInference(five.live, five.cache, guard, dict)
    predict = five.live.predict

    def replace_then_predict(*arguments: Any, **options: Any) -> Any:
        shutil.copy(five.folder / "b.nii.gz", image)
        return predict(*arguments, **options)

    def infer() -> None:
        Path(task({"image": str(image), "keep_signals": True})[0]).unlink()

    five.live.predict = replace_then_predict
    infer()
    assert five.page("codebook_entropy")["scored"] == 0
    five.live.predict = predict
    infer()
    assert five.page("codebook_entropy")["scored"] == 1
    five.score()
    scores = {study["id"]: study["score"] for study in five.page("codebook_entropy")["studies"]}
    assert scores["a"] == scores["b"]


def test_a_scoring_forgets_the_checksums_of_images_that_are_gone(five: Any) -> None:
    five.score()
    sums = five.run / "scoring" / "checksums"
    before = len(list(sums.iterdir()))
    five.datastore.remove_image("a")
    five.score()
    assert len(list(sums.iterdir())) == before - 1


def test_a_labelled_study_that_cannot_be_read_keeps_no_other_from_being_ranked(five: Any) -> None:
    five.damage("known")
    five.score()
    page = five.page("codebook_rarity")
    assert (page["strategy_used"], page["scored"]) == ("codebook_rarity", 3)
    assert "known" in five.next("codebook_rarity")["note"]


def test_a_label_that_changes_while_the_model_works_is_not_taken_for_the_new_one(five: Any) -> None:
    predict, seeds = five.live.predict, itertools.count(5)

    def submit_then_predict(volume: Any, **options: Any) -> Any:
        five.label("other", noise(next(seeds)) > 1)
        return predict(volume, **options)

    five.live.predict = submit_then_predict
    five.score()
    five.live.predict = predict
    before = {study["id"] for study in five.page("disagreement")["studies"]}
    five.score()
    assert "other" not in before
    assert "other" in {study["id"] for study in five.page("disagreement")["studies"]}


def test_a_child_whose_server_ended_while_it_started_ends_as_well() -> None:
    """It has another parent from the first, so only the server itself can have told whose child it was."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    code = "from lib import process; process.is_child = lambda: True; process.stop_without_server(); print('goes on')"
    for server, goes_on in ((ended.pid, False), (os.getpid(), True)):
        variables = {**os.environ, "VQSEG_SERVER_PID": str(server), "PYTHONPATH": str(APP)}
        child = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
        assert (child.stdout.strip() == "goes on", child.returncode == 0) == (goes_on, goes_on)
        assert ("the server is gone" in child.stderr) != goes_on
