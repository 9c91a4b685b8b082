"""Selection from a PACS that is larger than the cache of its images: real Orthanc, real signals."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from builders import slice_file, write_dicom
from servers import APP, python_module, serve
from watched_servers import publish
from workplaces import LABELS, Workplace

SPACING = {"data.spacing": [11, 11, 15]}
LABELLED = ("phantom_0", "phantom_1")


class Fetching:
    """A client of the PACS that notes what it fetches."""

    def __init__(self, client: Any) -> None:
        self._client, self._fetch = client, client.fetch
        self.fetched: list[str] = []
        client.fetch = self._noted

    def _noted(self, series: Any, folder: Path) -> None:
        self.fetched.append(series.uid)
        self._fetch(series, folder)


@pytest.fixture
def labelled_for_now(pacs: Any) -> Iterator[None]:
    yield
    pacs.delete("SEG")


@pytest.fixture
def open_place(
    pacs: Any, tmp_path: Path, app_module: Any, labelled_for_now: None
) -> Callable[[], tuple[Workplace, Fetching]]:
    """What a server that starts anew is made of; its cache holds one image of the PACS at most."""

    def opened() -> tuple[Workplace, Fetching]:
        place, client = Workplace(tmp_path, app_module), app_module("pacs").PACS(pacs.dicomweb)
        fetching = Fetching(client)
        label_set = app_module("labels").LabelSet(LABELS, None)
        place.datastore = app_module("pacs_datastore").PACSStudies(
            client, tmp_path / "pacs", 1.0, label_set, place.memory
        )
        return place, fetching

    return opened


@pytest.fixture
def scored(open_place: Any, pacs: Any) -> tuple[Workplace, Fetching]:
    """Two of the phantoms are labelled, all are scored, and all but one had to make room."""
    place, fetching = open_place()
    place.publish(**SPACING)
    for name in LABELLED:
        file = place.folder / "label.bin"
        file.write_bytes(pacs.masks[name].tobytes(order="F"))
        names = [{"name": name, "idx": value} for name, value in LABELS.items()]
        place.datastore.save_label(pacs.series[name], str(file), "final", {"label_info": names})
    assert place.score(strategy="perturbation") == {"scored": 4, "missing": 0, "left_out": {}}
    on_disk = [place.datastore.image_on_disk(uid) for uid in pacs.series.values()]
    assert sum(file is not None for file in on_disk) == 1
    return place, fetching


@pytest.mark.parametrize("name", ["codebook_rarity", "codebook_coverage", "codebook_balanced", "coreset"])
def test_what_is_known_of_a_study_outlives_its_image(scored: Any, open_place: Any, name: str) -> None:
    for place, fetching in (scored, open_place()):
        fetching.fetched.clear()
        page = place.page(name)
        assert (page["strategy_used"], page["scored"], page["missing"], page["note"]) == (name, 4, 0, "")
        assert fetching.fetched == []


def test_a_second_scoring_fetches_nothing(scored: Any, open_place: Any, pacs: Any) -> None:
    for place, fetching in (scored, open_place()):
        fetching.fetched.clear()
        assert place.score(strategy="perturbation")["scored"] == 4
        assert [uid for uid in fetching.fetched if uid in pacs.series.values()] == []
        review = place.page("disagreement")
        assert {study["id"] for study in review["studies"]} == {pacs.series[name] for name in LABELLED}
        assert (review["missing"], review["left_out"]) == (0, {})


def test_an_image_that_makes_room_while_it_is_looked_at_is_scored(open_place: Any, pacs: Any) -> None:
    place, _ = open_place()
    place.publish(**SPACING)
    looked = place.live.signals

    def make_room_then_look(*arguments: Any, **options: Any) -> Any:
        for name in ("phantom_4", "phantom_5"):
            place.datastore.get_image_uri(pacs.series[name])
        return looked(*arguments, **options)

    place.live.signals = make_room_then_look
    assert place.score() == {"scored": 6, "missing": 0, "left_out": {}}


def test_what_an_inference_saw_outlives_the_image(open_place: Any, pacs: Any) -> None:
    place, fetching = open_place()
    place.publish(**SPACING)
    guard = place.module("memory_guard").MemoryGuard()
    task = place.module("inference").VQSegInference(place.live, place.cache, guard, dict)
    for number in range(2):
        image = place.module("sources").image_file(place.datastore, pacs.series[f"phantom_{number}"], place.cache)
        Path(task({"image": str(image), "keep_signals": True})[0]).unlink()
    fetching.fetched.clear()
    assert place.page("codebook_entropy")["scored"] == 2
    assert fetching.fetched == []


@pytest.mark.long
@pytest.mark.usefixtures("labelled_for_now")
def test_a_server_ranks_a_pacs_that_is_larger_than_its_cache(pacs: Any, tmp_path: Path) -> None:
    publish(tmp_path / "run", LABELS, SPACING)
    conf = {"labels": ",".join(LABELS), "pacs_cache_gb": "0.000001"}
    with serve(python_module(), str(APP), pacs.dicomweb, tmp_path, tmp_path, conf) as server:
        for name in LABELLED:
            file = tmp_path / "label.bin"
            file.write_bytes(pacs.masks[name].tobytes(order="F"))
            names = [{"name": name, "idx": value} for name, value in LABELS.items()]
            server.put_label(pacs.series[name], file, names).raise_for_status()
        pages: list[dict[str, Any]] = []
        end = time.monotonic() + 600
        while not pages or pages[-1]["missing"] or pages[-1]["scoring"]["state"] != "done":
            assert time.monotonic() < end, pages[-1:]
            time.sleep(0.5)
            pages.append(server.get("/vqseg/ranking", strategy="codebook_rarity").json())
        assert (pages[-1]["strategy_used"], pages[-1]["scored"], pages[-1]["note"]) == ("codebook_rarity", 4, "")
        assert len(list((server.run / "pacs" / "images").iterdir())) == 1


def test_a_label_that_is_submitted_again_is_compared_again(scored: Any, pacs: Any) -> None:
    place, _ = scored
    before = {study["id"]: study["score"] for study in place.page("disagreement")["studies"]}
    file = place.folder / "label.bin"
    file.write_bytes(np.full_like(pacs.masks["phantom_0"], LABELS["tumour"]).tobytes(order="F"))
    names = [{"name": name, "idx": value} for name, value in LABELS.items()]
    place.datastore.save_label(pacs.series["phantom_0"], str(file), "final", {"label_info": names})
    assert place.page("disagreement")["missing"] == 1
    place.score()
    after = {study["id"]: study["score"] for study in place.page("disagreement")["studies"]}
    assert after[pacs.series["phantom_0"]] != before[pacs.series["phantom_0"]]
    assert after[pacs.series["phantom_1"]] == before[pacs.series["phantom_1"]]


def test_a_series_that_has_grown_is_looked_at_again(
    scored: Any, pacs: Any, orthanc: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place, fetching = scored
    whole, late = tmp_path / "whole", tmp_path / "late"
    late.mkdir()
    image = np.random.default_rng(0).integers(-900, 0, (24, 20, 12), np.int16)
    write_dicom(whole, image, (1, 0, 0), (0, 1, 0), (11.0, 11.0, 15.0))
    uid = str(pydicom.dcmread(slice_file(whole, 0)).SeriesInstanceUID)
    request.addfinalizer(lambda: pacs.delete_series(uid))
    for index in (10, 11):
        shutil.move(slice_file(whole, index), late)
    orthanc.load(whole, pacs.port)
    place.datastore.refresh()
    place.score()
    place.datastore.get_image_uri(pacs.series["phantom_0"])
    assert place.page("codebook_entropy")["missing"] == 0
    orthanc.load(late, pacs.port)
    place.datastore.refresh()
    assert place.page("codebook_entropy")["missing"] == 1
    fetching.fetched.clear()
    place.score()
    assert fetching.fetched == [uid]
    assert place.page("codebook_entropy")["missing"] == 0
