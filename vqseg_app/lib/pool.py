"""Code usage of studies: from the cache, else counted by the live model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from monailabel.interfaces.datastore import Datastore

from vqseg.data.reading import read_image
from vqseg.errors import ImageError

from .errors_over_rest import UnknownError
from .live_model import LiveModel
from .pacs import PACSAwayError, PACSError
from .usage_cache import UsageCache

logger = logging.getLogger(__name__)


@dataclass
class PoolUsage:
    """Counts by study, those not counted in time, and the unreadable ones with the reason."""

    counts: dict[str, np.ndarray] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def of(self, studies: Iterable[str]) -> PoolUsage:
        """What of this is about these studies."""
        chosen = set(studies)
        return PoolUsage(
            {study: counts for study, counts in self.counts.items() if study in chosen},
            [study for study in self.missing if study in chosen],
            {study: why for study, why in self.left_out.items() if study in chosen},
        )


def usage_of(
    studies: Iterable[str], datastore: Datastore, live: LiveModel, cache: UsageCache, seconds: float | None = None
) -> PoolUsage:
    """Count the codes of studies, for at most `seconds`. Raises `ModelError` when there is no model."""
    pool = PoolUsage()
    end = None if seconds is None else time.monotonic() + seconds
    made_by: dict[str, str] = {}
    for study in studies:
        model = live.identity()
        try:
            image = Path(datastore.get_image_uri(study))
            counts = cache.get(model, image)
            if counts is None and end is not None and time.monotonic() > end:
                pool.missing.append(study)
                continue
            if counts is None:
                counts, model = live.usage(read_image(image))
                cache.put(model, image, counts)
        except PACSAwayError:
            raise
        except (ImageError, PACSError, UnknownError, FileNotFoundError) as error:
            logger.warning("left out: %s", error)
            pool.left_out[study] = str(error)
        else:
            pool.counts[study], made_by[study] = counts, model
    # A training may publish meanwhile; code counts of two models cannot be compared.
    current = live.identity()
    for study in [study for study, model in made_by.items() if model != current]:
        del pool.counts[study]
        pool.missing.append(study)
    return pool
