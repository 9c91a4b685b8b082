"""A ranking of the datastore's studies by one strategy: what is offered next, and what the whole list is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from monailabel.interfaces.datastore import Datastore

from vqseg.active.at_random import Uniform
from vqseg.active.pool import Pool
from vqseg.active.review import review_pool
from vqseg.active.strategies import REVIEWS, STRATEGIES, make_strategy
from vqseg.active.strategy import Ranking
from vqseg.config import Active
from vqseg.randomness import numpy_generator
from vqseg.store import ModelVersion

from .cold_start import ColdStart
from .gathering import Gathered, gather, in_fair_order
from .live_model import LiveModel, identity_of
from .memory_guard import MemoryGuard
from .score_cache import ScoreCache
from .sources import DiceOfLabels, SignalsOfImages

UNIFORM = Uniform.name
_OF_LABELLED = {"labelled_weights", "labelled_features"}


@dataclass(frozen=True)
class Selection:
    """`candidates` were asked about; those `scored` by `model_version`, or all by chance, are in the `ranking` of
    `strategy`. `note` says in words what was not as asked for."""

    strategy: str
    ranking: Ranking
    candidates: Sequence[str]
    model_version: str | None
    scored: frozenset[str] = frozenset()
    missing: Sequence[str] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    note: str = ""


class Selector:
    """Ranks by any strategy. Where one cannot be served, studies are drawn at random, and the note says why."""

    def __init__(
        self, settings: Active, live: LiveModel, cold_start: ColdStart, cache: ScoreCache, memory: MemoryGuard
    ) -> None:
        self._settings, self._live, self._cold_start = settings, live, cold_start
        self._cache, self._memory = cache, memory

    def select(
        self,
        name: str,
        datastore: Datastore,
        *,
        held: frozenset[str] = frozenset(),
        seconds: float = 0.0,
        unusable: Collection[str] = (),
    ) -> Selection:
        """Rank the studies that are not `held` by others; these count as labelled.

        The model works for `seconds` at most on what it has not seen yet. Labelled studies that are known to be
        `unusable` are not waited for. The same question has the same answer, also by a strategy that draws.
        """
        if name in REVIEWS:
            return self._review(name, sorted(set(datastore.get_labeled_images()) - held), datastore, seconds)
        unlabelled, labelled = set(datastore.get_unlabeled_images()), datastore.get_labeled_images()
        candidates, soon = sorted(unlabelled - held), sorted(unlabelled & held)
        model = self._cold_start.comparing()
        asked, name = name, self._cold_start.strategy(name, model)
        version, strategy = model.version(), make_strategy(name, self._settings)
        needs = strategy.needs

        def by_chance(why: str) -> Selection:
            note = f"{why}: chosen by {UNIFORM} instead of {asked}" if why else ""
            ranking = make_strategy(UNIFORM).rank(Pool(candidates), _draws_of(UNIFORM, version, candidates))
            missing = candidates if why and self._cold_start.is_missing() else ()
            name_of_version = version.name if version else None
            return Selection(UNIFORM, ranking, candidates, name_of_version, missing=missing, note=note)

        if not needs:
            return by_chance("")
        if version is None:
            return by_chance("there is no trained model yet")
        if strategy.needs_codebook() and not version.config.model.has_codebook:
            return by_chance("the live model has no codebook")
        compared = sorted({*labelled, *soon} - set(unusable)) if needs & _OF_LABELLED else []
        source = SignalsOfImages(datastore, model, self._cache, self._memory, draws_for(name, self._settings))
        # In one go, so that all are seen by one model; the labelled first, for without them every study looks new.
        gathered = gather([*compared, *in_fair_order(candidates)], source, model, seconds)
        known, seen = gathered.of(compared), replace(gathered.of(candidates), left_out=gathered.left_out)
        if known.missing:
            instead = by_chance(f"labelled studies not scored yet: {len(known.missing)}")
            return replace(instead, missing=gathered.missing)
        if not seen.found:
            instead = by_chance("no study is scored")
            notes = [*_notes(seen), instead.note]
            return replace(instead, missing=seen.missing, left_out=seen.left_out, note="; ".join(notes))
        pool = Pool.of(
            seen.found,
            known.found.values(),
            structures=tuple(gathered.version.config.data.labels),
            progress=len(labelled) / (len(labelled) + len(unlabelled)),
            taken=len(labelled) + len(soon),
            needs=needs,
            replacement_codes=model.predictor().replacement_codes if "disagreement" in needs else float("nan"),
        )
        ranking = strategy.rank(pool, _draws_of(name, gathered.version, candidates))
        selection = _selection(name, ranking, candidates, seen)
        if version.segments:
            return selection
        before = f"before the first training studies are compared by a codebook learnt from images alone: {name}"
        if name != asked:
            before += f" instead of {asked}"
        return replace(selection, note="; ".join(filter(None, [before, selection.note])))

    def _review(self, name: str, labelled: list[str], datastore: Datastore, seconds: float) -> Selection:
        strategy, generator = make_strategy(name, self._settings), numpy_generator("review")
        if self._live.version() is None:
            note = "there is no trained model yet that labels could be compared with"
            return Selection(name, strategy.rank(Pool([]), generator), labelled, None, note=note)
        source = DiceOfLabels(datastore, self._live, self._cache, self._memory)
        seen = gather(labelled, source, self._live, seconds)
        pool = review_pool(seen.found, tuple(seen.version.config.data.labels))
        return _selection(name, strategy.rank(pool, generator), labelled, seen)


def _draws_of(strategy: str, version: ModelVersion | None, candidates: Sequence[str]) -> np.random.Generator:
    """Draws that follow from what is asked alone: who asks again is told the same, and the list shows what is offered.

    The ids are in the key, for by one stream for all pools the study that moves up to the place of a labelled one would
    come next; the strategy is, for by one stream two of them would draw alike.
    """
    return numpy_generator("ranking", strategy, identity_of(version) if version else "", *candidates)


def _selection(name: str, ranking: Ranking, candidates: Sequence[str], seen: Gathered) -> Selection:
    scored, version, note = frozenset(seen.found), seen.version.name, "; ".join(_notes(seen))
    return Selection(name, ranking, candidates, version, scored, seen.missing, seen.left_out, note)


def _notes(seen: Gathered) -> Iterator[str]:
    if seen.missing:
        yield f"studies not scored yet, which took no part: {len(seen.missing)}"
    if seen.left_out:
        yield left_out_in_words(seen.left_out)


def left_out_in_words(left_out: Mapping[str, str]) -> str:
    """Of a note: which studies took no part, and why."""
    return f"left out: {'; '.join(f'{study} ({reason})' for study, reason in left_out.items())}"


def draws_for(name: str, settings: Active) -> int:
    """Draws of the perturbation that a strategy needs, 0 for none."""
    return settings.draws if name in STRATEGIES and "disagreement" in make_strategy(name, settings).needs else 0
