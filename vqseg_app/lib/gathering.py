"""What a strategy needs to know of many studies: from the cache, else worked out by the model while time is left."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vqseg.errors import ImageError, VQSegError
from vqseg.store import ModelVersion

from .errors_over_rest import TooLargeError, UnknownError, without_folder
from .live_model import LiveModel, identity_of
from .pacs import PACSAwayError, PACSError
from .sources import Source
from .work_queue import stop_if_abandoned

logger = logging.getLogger(__name__)

T = TypeVar("T")
Told = Callable[[ModelVersion, int], None]
# What is wrong with one study alone; but a PACS that does not answer is so for all (`PACSAwayError`).
UNUSABLE = (ImageError, TooLargeError, PACSError, UnknownError)


@dataclass
class Gathered(Generic[T]):
    """What one `version` says by study, those it did not see in time, and the unusable ones with the reason."""

    version: ModelVersion
    found: dict[str, T] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def of(self, studies: Iterable[str]) -> Gathered[T]:
        """What of this is about these studies, in their order."""
        studies, missing = list(studies), set(self.missing)
        return Gathered(
            self.version,
            {study: self.found[study] for study in studies if study in self.found},
            [study for study in studies if study in missing],
            {study: self.left_out[study] for study in studies if study in self.left_out},
        )


def in_fair_order(studies: Iterable[str]) -> list[str]:
    """Studies in an order that has nothing to do with their ids, and is always the same.

    Until all are looked at, those that are known compete alone. By id these would be one hospital's, or the oldest.
    """
    return sorted(studies, key=lambda study: hashlib.sha256(study.encode()).digest())


def gather(
    studies: Sequence[str], source: Source[T], live: LiveModel, seconds: float = math.inf, told: Told | None = None
) -> Gathered[T]:
    """Look at studies, and let the model work for at most `seconds`. `told` hears of the version and how many are done.

    A training may publish meanwhile, and two models cannot be compared: then all is looked at anew, by the new one.
    Raises `ModelError` when there is no model.
    """
    end = time.monotonic() + seconds
    while True:
        gathered = _by_one_version(Gathered(live.needed_version()), studies, source, end, told)
        if gathered is not None:
            return gathered


def _by_one_version(
    gathered: Gathered[T], studies: Sequence[str], source: Source[T], end: float, told: Told | None
) -> Gathered[T] | None:
    """None as soon as another version is live."""
    model = identity_of(gathered.version)
    for done, study in enumerate(studies):
        stop_if_abandoned()
        if told:
            told(gathered.version, done)
        try:
            value = source.known(model, study)
            if value is None and time.monotonic() >= end:
                gathered.missing.append(study)
                continue
            if value is None:
                value, made_by = source.made(study)
                if made_by != model:
                    return None
        except PACSAwayError:
            raise
        except UNUSABLE as error:
            gathered.left_out[study] = reason_of(error)
        except OSError as error:
            gathered.left_out[study] = f"cannot be read ({error.strerror})"
        except (MemoryError, RuntimeError) as error:
            # One study that does not fit into memory must not keep all others from being looked at.
            logger.exception("%s", study)
            gathered.left_out[study] = f"the model cannot look at it ({type(error).__name__})"
        else:
            gathered.found[study] = value
    for study, reason in gathered.left_out.items():
        logger.warning("left out: %s (%s)", study, reason)
    return gathered


def reason_of(error: VQSegError) -> str:
    """Why a study is left out, without its place on the server."""
    return without_folder(error.reason if isinstance(error, ImageError) else str(error))
