"""What the app is made of, without a server: studies in a folder, models, cache, reservations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from vqseg.active.strategies import REVIEWS
from vqseg.config import Active, load_config
from vqseg.networks.build import build_network
from vqseg.store import ModelStore

LABELS = {"lung": 1, "tumour": 2}
MODEL = {
    "data.labels": LABELS,
    "data.spacing": [1, 1, 1],
    "data.patch_size": [16, 16, 16],
    "model.channels": [4, 8],
    "model.first_quantized_level": 1,
    "model.codebook_size": 64,
    "model.code_dim": 4,
}


class Workplace:
    """Studies in `folder`/studies and what is made of them in `folder`/run. Args: `app_module`, the fixture; `settings`
    of the choice of studies; `memory_gib` for one image."""

    def __init__(self, folder: Path, app_module: Any, *, memory_gib: float | None = None, **settings: Any) -> None:
        self.folder, self.module = folder / "studies", app_module
        self.folder.mkdir(exist_ok=True)
        self.run = folder / "run"
        self.settings = Active(**{"draws": 2} | settings)
        labels = app_module("labels").LabelSet(LABELS, self.folder)
        self.datastore = app_module("datastore").StudiesFolder(str(self.folder), labels)
        self.live = app_module("live_model").LiveModel(self.run, "cpu")
        self.cache = app_module("score_cache").ScoreCache(self.run / "scoring", self.settings.tokens)
        config = load_config(overrides=MODEL).model_copy(update={"active": self.settings})
        self.cold_start = app_module("cold_start").ColdStart(self.live, self.run / "cold_start", config, "cpu")
        self.memory = app_module("memory_guard").MemoryGuard(memory_gib)
        parts = self.live, self.cold_start, self.cache, self.memory
        self.selector = app_module("selection").Selector(self.settings, *parts)
        self.reservations = app_module("reservations").Reservations(60)
        self.reviews = app_module("reservations").Reservations(60)

    def add(self, **studies: Any) -> None:
        """Images of these voxels, as clients upload them."""
        for name, voxels in studies.items():
            path = self.folder.with_name(f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(np.asarray(voxels, np.float32), np.eye(4)), path)
            self.datastore.add_image(name, str(path), {})

    def damage(self, study: str) -> None:
        (self.folder / f"{study}.nii.gz").write_bytes(b"no image")

    def label(self, study: str, mask: Any, user: str | None = None) -> None:
        path = self.folder.with_name("label.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(mask, np.uint8), np.eye(4)), path)
        names = [{"name": name, "idx": value} for name, value in LABELS.items()]
        self.datastore.save_label(study, str(path), "final", {"label_info": names, "user": user})

    def publish(self, seed: int = 0, **overrides: Any) -> None:
        config = load_config(overrides=MODEL | overrides)
        torch.manual_seed(seed)
        network = build_network(config)
        if network.has_codebook:
            network.calibrate()
        ModelStore(self.run / "models").publish(network, {"config": config.model_dump(mode="json")})

    def next(self, name: str, client: str = "reader", seconds: float = 60.0) -> dict[str, Any]:
        parts = self.selector, self.live, self.memory, self.reviews if name in REVIEWS else self.reservations
        strategy = self.module("strategies").NextStudy(name, *parts, seconds)
        return strategy({"client_id": client}, self.datastore)

    def score(self, **request: Any) -> dict[str, Any]:
        return self.scoring()(request, self.datastore)

    def scoring(self) -> Any:
        parts = self.cold_start, self.cache, self.memory, self.settings
        return self.module("scoring").VQSegScoring(*parts, self.run / "scoring")

    def page(self, name: str, page: int = 1, per_page: int = 50) -> dict[str, Any]:
        progress = self.module("scoring_progress").read_progress(self.run / "scoring")
        return self.module("ranking").ranking_page(self.selector, name, self.datastore, page, per_page, progress)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(16, 16, 16))


RAMP = np.mgrid[:16, :16, :16][0] / 4.0
