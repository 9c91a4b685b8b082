"""The library's strategies as those of MONAI Label, each under its own name and the default one also as `random`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from vqseg.active.strategies import REVIEWS, STRATEGIES
from vqseg.active.strategy import Ranked
from vqseg.data.reading import read_image
from vqseg.errors import ConfigError

from .gathering import UNUSABLE, reason_of
from .live_model import LiveModel
from .memory_guard import MemoryGuard
from .pacs import PACSAwayError
from .reservations import Reservations
from .selection import Selection, Selector, left_out_in_words

logger = logging.getLogger(__name__)
ANONYMOUS = "anonymous"
SERVED = STRATEGIES | REVIEWS


class NextStudy(Strategy):
    """Ranks the studies and reserves the best one that no other client holds."""

    def __init__(
        self,
        name: str,
        selector: Selector,
        live: LiveModel,
        memory: MemoryGuard,
        reservations: Reservations,
        seconds: float,
    ) -> None:
        super().__init__(describe(name))
        self.name = name
        self._selector = selector
        self._live = live
        self._memory = memory
        self._reservations = reservations
        self._seconds = seconds

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """`{}` when no study is left, which is what OHIF expects."""
        client, review = str(request.get("client_id") or ANONYMOUS), self.name in REVIEWS
        if review:
            self._live.needed_version()
        held = frozenset(self._reservations.of_others(client))
        selection = self._selector.select(self.name, datastore, held=held, seconds=self._seconds)
        ranked = selection.ranking.ids
        # Somebody may have labelled or removed one meanwhile, without having asked for it.
        still = set(datastore.get_labeled_images() if review else datastore.get_unlabeled_images())
        unusable: dict[str, str] = {}
        # A client that is at work on a study keeps it, also while a version that has just come has not seen it.
        while chosen := self._reservations.take_first([one for one in ranked if one in still], client, keep=still):
            if chosen in selection.scored or not (fault := self._fault(datastore, chosen)):
                break
            unusable[chosen] = fault
            still.remove(chosen)
        if chosen is None:
            return {}
        note = "; ".join(filter(None, [selection.note, left_out_in_words(unusable) if unusable else ""]))
        return {
            **_reply(selection, chosen),
            "strategy_used": selection.strategy,
            "scored": len(selection.scored),
            "labelled" if review else "unlabelled": len(selection.candidates),
            "missing": len(selection.missing),
            "model_version": selection.model_version,
            **({"note": note} if note else {}),
        }

    def _fault(self, datastore: Datastore, image: str) -> str:
        """Why nobody can open the image that is about to be handed out; empty when somebody can."""
        try:
            file = Path(datastore.get_image_uri(image))
            self._memory.check_file(file)  # to be read alone: no model looks at what is chosen by chance
            read_image(file)
        except PACSAwayError:
            raise
        except UNUSABLE as error:
            logger.warning("not handed out: %s", error)
            return reason_of(error)
        return ""


def _reply(selection: Selection, chosen: str) -> dict[str, Any]:
    """Place and reason of a study; without a place where its client held it already and it was not ranked."""
    ranked = selection.ranking.ids
    if chosen not in ranked:
        return Ranked(chosen, math.nan, "you hold it already; the live model has not looked at it yet").as_values(None)
    place = ranked.index(chosen)
    return selection.ranking[place].as_values(place + 1)


def default_strategy(name: str) -> str:
    """The name, where it is one of a strategy that chooses studies to label. Raises `ConfigError` with the list."""
    if name not in STRATEGIES:
        raise ConfigError(f"active.strategy: the server has no strategy {name!r}; it has: {', '.join(STRATEGIES)}")
    return name


def describe(name: str) -> str:
    """First line of the strategy's own documentation."""
    return (SERVED[name].__doc__ or name).strip().splitlines()[0]
