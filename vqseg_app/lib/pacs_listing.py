"""What a PACS holds, asked for again after some seconds, and what it held when last it said.

It is asked in a thread of its own, for a PACS may be slow: routes of MONAI Label 0.8.5 run in the event loop, where
nothing else is answered while one of them waits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillAsking
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from vqseg.data.dicom_seg import model_of, segment_names
from vqseg.data.dicom_series import referenced_series

from .pacs import PACS, PACSAwayError, PACSError, Series

logger = logging.getLogger(__name__)
# A label that somebody saves with another program is seen after this time; our own at once. For so long, too, a PACS
# that failed is not asked again.
_LIST_SECONDS = 5.0
# After this time whoever only watches sees what other programs send: the server itself does so day and night.
_WATCH_SECONDS = 20.0
# For so long somebody who must not wait waits for the PACS all the same: mostly it answers within it.
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class Segmentation:
    """A SEG series: the image it belongs to (empty when it does not say), when it was made (DICOM, local time), its
    structures, its annotator and the version of our model whose mask was corrected, where it says so.
    """

    series: Series
    image: str
    made: str
    names: tuple[str, ...]
    creator: str = ""
    model_version: str | None = None


@dataclass(frozen=True)
class Listing:
    """What the PACS holds: images by series UID, the newest SEG of each labelled one; every SEG, the oldest first."""

    images: Mapping[str, Series] = field(default_factory=dict)
    labels: Mapping[str, Segmentation] = field(default_factory=dict)
    segmentations: Sequence[Segmentation] = ()


@dataclass
class _Question:
    asked: float = field(default_factory=time.monotonic)
    answered: float | None = None
    answer: Future[Listing] = field(default_factory=Future)

    def is_old(self, seconds: float) -> bool:
        return self.answered is not None and time.monotonic() - self.answered > seconds


class PACSListing:
    """Args: `modalities` of the series that are images. Safe for several threads."""

    def __init__(self, pacs: PACS, modalities: Sequence[str]) -> None:
        self._pacs, self._modalities = pacs, modalities
        self._lock = threading.Lock()
        self._question: _Question | None = None
        self._segmentations: dict[str, Segmentation] = {}  # a SEG series never changes
        self.last: Listing | None = None

    def now(self, *, hurry: bool = False) -> Listing:
        """What the PACS holds. Raises `PACSError`, in a `hurry` for a slow PACS too.

        In the event loop a slow PACS holds what it held before.
        """
        question = self._asked()
        left = question.asked + _PATIENCE_SECONDS - time.monotonic() if hurry or _in_event_loop() else None
        try:
            return question.answer.result(None if left is None else max(0.0, left))
        except StillAsking:
            if hurry or self.last is None:
                raise PACSAwayError(
                    f"the PACS at {self._pacs.url} is slow to list its series; try again later"
                ) from None
            return self.last
        except PACSError as error:  # one object for all who ask
            raise type(error)(str(error)) from None

    def known(self) -> Listing:
        """What the PACS holds; while it fails, what it held before. Raises `PACSError` when it never said."""
        try:
            return self.now()
        except PACSError:
            if self.last is None:
                raise
            return self.last

    def watched(self) -> Listing:
        """What the PACS held when last it said, without waiting for it; it is asked again now and then."""
        self._asked(_WATCH_SECONDS)
        return self.last or Listing()

    def forget(self) -> None:
        """Ask again: something changed."""
        with self._lock:
            self._question = None

    def _asked(self, seconds: float = _LIST_SECONDS) -> _Question:
        """A question to the PACS whose answer is no older than these seconds."""
        with self._lock:
            if self._question is None or self._question.is_old(seconds):
                question = _Question()
                threading.Thread(target=self._ask, args=(question,), name="pacs-listing", daemon=True).start()
                self._question = question
            return self._question

    def _ask(self, question: _Question) -> None:
        try:
            images = {series.uid: series for series in self._pacs.find(self._modalities)}
            found = [one for series in self._pacs.find(["SEG"]) if (one := self._segmentation(series)) is not None]
        except BaseException as error:
            question.answered = time.monotonic()
            question.answer.set_exception(error)
            return
        # The newest of an image comes last and stays.
        ordered = sorted(found, key=lambda segmentation: (segmentation.made, segmentation.series.uid))
        labels = {segmentation.image: segmentation for segmentation in ordered if segmentation.image in images}
        listing = Listing(images, labels, ordered)
        with self._lock:
            # An answer to a former question may come after that to a later one.
            if self.last is None or self._question is question:
                self.last = listing
        question.answered = time.monotonic()
        question.answer.set_result(listing)

    def _segmentation(self, series: Series) -> Segmentation | None:
        """None for one that the PACS cannot describe now, which is asked for again."""
        if series.uid not in self._segmentations:
            try:
                header = next(iter(self._pacs.headers(series)), None)
            except PACSAwayError:
                raise
            except PACSError as error:
                logger.warning("a label is left out: %s", error)
                return None
            if header is None:
                return None
            self._segmentations[series.uid] = Segmentation(
                series,
                referenced_series(header),
                f"{header.get('ContentDate') or ''}{header.get('ContentTime') or ''}",
                _names(series, header),
                *_origin(header),
            )
        return self._segmentations[series.uid]


def _names(series: Series, header: Dataset) -> tuple[str, ...]:
    try:
        return tuple(segment_names(header).values()) if "SegmentSequence" in header else ()
    except (AttributeError, TypeError, ValueError) as error:  # whoever reads the label names the reason
        logger.warning("the structures of the SEG series %s cannot be read: %r", series.uid, error)
        return ()


def _origin(header: Dataset) -> tuple[str, str | None]:
    try:
        return str(header.get("ContentCreatorName") or ""), model_of(header)
    except (AttributeError, TypeError, ValueError):  # it is told, and nothing depends on it
        return "", None


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
