"""A round: a model trained on some labelled studies, its score, and what it says of the pool.

A round follows from what it was trained on, the seed and the look at the pool. It is kept on disk under a hash of
these, so strategies that choose the same studies share it, and a simulation that was stopped finds what it had done.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import filelock
import numpy as np
import torch

from vqseg.active.pool import Pool
from vqseg.config import Config
from vqseg.devices import has_fast_bfloat16
from vqseg.files import new_file
from vqseg.inference.predictor import Predictor
from vqseg.inference.signals import StudySignals
from vqseg.metrics import dice_by_structure, mean_dice, score_volume, summarise
from vqseg.networks.vqseg import VQSeg
from vqseg.randomness import torch_generator
from vqseg.simulation.cases import Case
from vqseg.simulation.codebooks import CODEBOOKS
from vqseg.training.self_supervised import SELF_SUPERVISED_METHOD
from vqseg.training.trainer import Trainer

__all__ = ["Learner", "Look", "Round"]

# Raised whenever a change of the code makes other models or signals of the same settings, or keeps rounds otherwise.
_CODE = 3
# Raised whenever a change of the code rounds otherwise: such models are as good, but not those of the same step.
_ROUNDING = 1


@dataclass(frozen=True)
class Look:
    """How the pool is looked at: by which of `CODEBOOKS` its tokens are counted, with how many `draws` of a
    perturbation, and of which `kind` this is (`perturbation.kind`); none: what the network was trained with."""

    codebook: str = "trained"
    draws: int = 0
    kind: str | None = None


@dataclass(frozen=True)
class Round:
    """`labelled` ids; mean `scores` on the validation studies (dice, hd95, assd); by id of every study of the pool, if
    it was looked at, its `signals` and its `dice`, the mean over the structures; `seconds` that each part took; the
    effective number of `replacement_codes` of the QPM draws, if there were any.

    With nothing labelled the network learns from images alone, and there is nothing to score.
    """

    labelled: list[str]
    scores: dict[str, float]
    signals: dict[str, StudySignals]
    dice: dict[str, float]
    seconds: dict[str, float]
    replacement_codes: float | None

    def pool(self, structures: Sequence[str], progress: float) -> Pool:
        """The studies that are not labelled yet, as the strategies see them."""
        taken = set(self.labelled)
        candidates = {study: signals for study, signals in self.signals.items() if study not in taken}
        labelled = [self.signals[study] for study in self.labelled]
        return Pool.of(candidates, labelled, structures=structures, progress=progress)


class Learner:
    """Trains on a labelled set, always from the same initialisation and for the same number of steps.

    Args: `config` planned; `method` of training; `pool` and `validation` cases by id; `folder` where rounds are kept.
    `identity` changes with settings, method, studies and code: rounds of two cannot be compared.
    """

    def __init__(
        self,
        config: Config,
        method: str,
        pool: Mapping[str, Case],
        validation: Mapping[str, Case],
        device: torch.device,
        folder: Path,
    ) -> None:
        self.config, self.method, self.pool, self.validation = config, method, pool, validation
        self.device, self.folder = device, folder
        self.structures = tuple(config.data.labels)
        settings = config.model_dump(mode="json", exclude={"active", "tracking"})
        studies = [[case.identity for case in part.values()] for part in (pool, validation)]
        self.identity = _hash([settings, method, studies, _CODE])
        # Other arithmetic makes other models, which must not be compared with these; sums depend on the threads, too.
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        self._arithmetic = [device.type, has_fast_bfloat16(device), threads, torch.__version__, _ROUNDING]

    def round(self, labelled: Iterable[str], seed: int, look: Look | None = None) -> Round:
        """The round of a labelled set; with a `look` at the pool, without one nothing but the scores."""
        ids = sorted(labelled)
        key = _hash([self.identity, self._arithmetic, ids, seed, look])
        self.folder.mkdir(parents=True, exist_ok=True)
        # Two processes that come to the same labelled set train on it once.
        with filelock.FileLock(self.folder / f"{key}.lock"):
            if (known := _read(self.folder / f"{key}.npz")) is not None:
                return known
            made = self._make(ids, seed, look)
            _write(self.folder / f"{key}.npz", made)
            return made

    def _make(self, ids: list[str], seed: int, look: Look | None) -> Round:
        begin = time.perf_counter()
        network, config = self._trained(ids, seed)
        trained = time.perf_counter()
        predictor = Predictor(network, config, self.device, segments=bool(ids))
        scores = {}
        for case in self.validation.values() if ids else ():
            mask = predictor.predict(case.volume, image=case.image).mask
            scores[case.id] = score_volume(mask, case.mask, predictor.labels, case.volume.spacing)
        scored = time.perf_counter()
        signals, quality = {}, {}
        if look:
            codebook = CODEBOOKS[look.codebook](network, config, [case.without_label for case in self.pool.values()])
            if look.kind:
                perturbation = config.perturbation.model_copy(update={"kind": look.kind})
                looked_by = config.model_copy(update={"perturbation": perturbation})
                predictor = Predictor(network, looked_by, self.device, segments=bool(ids))
            for case in self.pool.values():
                draw = torch_generator(seed, "signals", case.id)
                if not ids:
                    signals[case.id] = predictor.signals(case.volume, look.draws, draw, codebook, image=case.image)
                    continue
                prediction = predictor.predict(
                    case.volume,
                    with_signals=True,
                    draws=look.draws,
                    generator=draw,
                    codebook=codebook,
                    image=case.image,
                )
                assert prediction.signals is not None
                signals[case.id] = prediction.signals
                quality[case.id] = mean_dice(dice_by_structure(prediction.mask, case.mask, predictor.labels))
        seconds = {"train": trained - begin, "score": scored - trained, "look": time.perf_counter() - scored}
        codes = predictor.replacement_codes if look and look.draws else math.nan
        known_codes = None if math.isnan(codes) else codes
        return Round(ids, summarise(scores)["mean"] if ids else {}, signals, quality, seconds, known_codes)

    def _trained(self, ids: list[str], seed: int) -> tuple[VQSeg, Config]:
        """The teacher after the last step, and its settings."""
        config = self.config.model_copy(update={"train": self.config.train.model_copy(update={"seed": seed})})
        labelled = [self.pool[study].prepared for study in ids]
        images = [case.without_label for case in self.pool.values()]
        if ids:
            # With every study labelled, their images are what is learnt from without masks.
            unlabelled = [image for image in images if image.study.id not in ids] or images
            trainer = Trainer(config, self.method, labelled, unlabelled, self.device)
        else:
            trainer = Trainer(config, SELF_SUPERVISED_METHOD, images, [], self.device)
        trainer.load_pretrained()
        trainer.run(lambda done: None)
        assert isinstance(trainer.teacher, VQSeg), "a simulation needs a network with a codebook"
        return trainer.teacher, config


def _hash(values: list[object]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:24]


def _write(path: Path, made: Round) -> None:
    """As arrays alone, whole or not at all."""
    words = {field.name: getattr(made, field.name) for field in fields(Round) if field.name != "signals"}
    rows = made.signals.values()
    columns = {field.name: np.array([getattr(row, field.name) for row in rows]) for field in fields(StudySignals)}
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, words=json.dumps(words), studies=list(made.signals), **columns)


def _read(path: Path) -> Round | None:
    """The round that was kept, or none when there is none or it is damaged."""
    try:
        # Opened here, for numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            words = json.loads(str(kept["words"]))
            columns = {field.name: kept[field.name] for field in fields(StudySignals)}
            studies = kept["studies"].tolist()
    except Exception:  # there is no end to what numpy, zipfile and zlib raise for a damaged file
        return None
    rows = zip(*columns.values(), strict=True)
    signals = {study: StudySignals(*row) for study, row in zip(studies, rows, strict=True)}
    return Round(**words, signals=signals)
