"""Inference `vqseg`: an image of the datastore in, a mask on the image's own grid out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from vqseg.data.reading import read_image

from .live_model import LiveModel
from .memory_guard import MemoryGuard
from .result_files import check_format, write_result
from .score_cache import ScoreCache
from .work_queue import stop_if_abandoned


class VQSegInference(InferTask):
    """Answers `ModelError` as long as nothing was trained; a mask of random weights is never returned."""

    def __init__(
        self, live: LiveModel, cache: ScoreCache, memory: MemoryGuard, labels: Callable[[], dict[str, int]]
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=None,
            dimension=3,
            description="VQ-Seg: segmentation learnt from few labelled and all unlabelled studies",
        )
        self._live = live
        self._cache = cache
        self._memory = memory
        self._labels = labels

    def is_valid(self) -> bool:
        return self._live.version() is not None

    def info(self) -> dict[str, Any]:
        # OHIF and Slicer need a list or a dict here, never null; a dict carries the values.
        return {**super().info(), "labels": self._live.labels() or self._labels()}

    def get_path(self, validate: bool = True) -> str | None:
        # GET /model/vqseg would offer the file for download, and PUT would replace a published version unchecked.
        return None

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        started = time.perf_counter()
        output_format = check_format(request)
        version = request.get("model_version")
        config = self._live.predictor(version).config
        image = Path(request["image"])
        self._memory.check_file(image, config)
        # Studies are compared by the live version alone.
        content = self._content(image) if request.get("keep_signals") and version is None else None
        volume = read_image(image)
        self._memory.check_volume(volume, config)
        stop_if_abandoned()
        read = time.perf_counter()
        # Working the signals out takes time on a large volume.
        wanted = content is not None and self._cache.signals(self._live.identity(), content) is None
        prediction, predictor, model = self._live.predict(volume, version, with_signals=wanted, go_on=stop_if_abandoned)
        stop_if_abandoned()
        predicted = time.perf_counter()
        # What was seen of an image that is another one now must not be kept for the new one.
        if prediction.signals is not None and content is not None and self._content(image) == content:
            self._cache.keep_signals(model, content, prediction.signals)
        # Last, for nobody would remove the file if something failed after it.
        result = write_result(prediction.mask, volume.grid, *output_format)
        finished = time.perf_counter()
        parts = {"prepare": "prepare", "network": "infer", "restore": "restore"}
        return os.fspath(result), {
            "label_names": predictor.labels,
            "model_version": predictor.version,
            "confidence": prediction.confidence.mean,
            "confidence_by_structure": prediction.confidence.by_structure,
            "codebook_distance": prediction.codebook_distance,
            "latencies": {
                "pre": round(read - started, 3),
                "infer": round(predicted - read, 3),
                "infer_parts": {name: round(prediction.seconds[part], 3) for name, part in parts.items()},
                "write": round(finished - predicted, 3),
                "total": round(finished - started, 3),
            },
        }

    def _content(self, image: Path) -> str | None:
        """Checksum of an image; none for one that cannot be read, which whoever reads it says better."""
        try:
            return self._cache.checksums.of(image)
        except OSError:
            return None
