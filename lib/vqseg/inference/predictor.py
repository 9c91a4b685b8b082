"""From a volume to a mask on the grid of its file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqseg.config import Config
from vqseg.data.plan import more_than_one_element
from vqseg.data.preparation import prepare_volume, resize_classes
from vqseg.data.reading import Volume
from vqseg.devices import choose_device
from vqseg.errors import ModelError
from vqseg.inference.confidence import Confidence, confidence_of
from vqseg.inference.signals import StudySignals, WindowTally, summarize, summarize_image
from vqseg.inference.windows import slide
from vqseg.networks.build import build_network
from vqseg.networks.network import Network
from vqseg.networks.perturbation import effective_codes
from vqseg.networks.vqseg import VQSeg
from vqseg.store import find_version, load_weights

__all__ = ["PATCHES_IN_ONE_PIECE", "SLICES_AT_A_TIME", "Prediction", "Predictor"]

# A volume of up to this many patches goes through the network in one piece: no seams, and no voxel computed twice. Not
# more, for instance norm is used to the statistics of a patch: at 3.2 patches the Dice of lungs fell from 0.88 to 0.56.
PATCHES_IN_ONE_PIECE = 2
SLICES_AT_A_TIME = 8


@dataclass(frozen=True)
class Prediction:
    """`mask` uint8 (X, Y, Z) in RAS+ axis order; `usage` int64 (K,) counts the chosen codes, all 0 for a
    network without a codebook; `confidence` of the mask on the working grid; `codebook_distance` as in `WindowTally`,
    none without a codebook; `seconds` by part; `signals` where they were asked for."""

    mask: NDArray[np.uint8]
    usage: NDArray[np.int64]
    confidence: Confidence
    codebook_distance: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    signals: StudySignals | None = None


@dataclass(frozen=True)
class _Inspected:
    """Class probabilities (1 or slices, L + 1, *spatial) on the working grid, on the CPU; how far the draws disagree,
    if there are any; what was added up over the windows."""

    probability: Tensor
    disagreement: Tensor | None
    tally: WindowTally


class Predictor:
    """A network ready to segment. It never changes the network, so threads may share it; they take turns.

    Args: `version` for messages; `segments` is false for a network that was trained on images alone.
    """

    def __init__(
        self, network: Network, config: Config, device: torch.device, version: str = "", *, segments: bool = True
    ) -> None:
        self.network = network.to(device).eval()
        self.config, self.device, self.version, self.segments = config, device, version, segments
        self._turn = threading.Lock()

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Predictor:
        """Load the live model of a run or a store, or one version. Raises `ModelError`."""
        version = find_version(folder)
        network = build_network(version.config)
        load_weights(network, version)
        return cls(network, version.config, choose_device(device), version.name, segments=version.segments)

    @property
    def labels(self) -> dict[str, int]:
        """Values of the structures by name."""
        return self.config.data.labels

    def predict(
        self,
        volume: Volume,
        *,
        with_signals: bool = False,
        draws: int = 0,
        generator: torch.Generator | None = None,
        codebook: Tensor | None = None,
        image: NDArray[np.float32] | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> Prediction:
        """Segment a volume; the mask has exactly the volume's own voxels.

        Its signals come out of the same pass; they take time, so they are worked out on request. `go_on` is called
        before each batch of windows, and what it raises ends the prediction. The other arguments are those of
        `signals`. Raises `ModelError` where the network was trained on images alone.
        """
        if not self.segments:
            raise ModelError(
                f"model version {self.version} was trained on images alone; train one with labels to segment"
            )
        begin = time.perf_counter()
        if image is None:
            image = prepare_volume(volume, self.config.data)
        prepared = time.perf_counter()
        inspected = self._inspect(image, draws, generator, codebook, go_on)
        inferred = time.perf_counter()
        probability, axis = inspected.probability, self.config.data.slice_axis
        whole = probability[0] if axis is None else probability.movedim(0, axis + 1)
        mask = resize_classes(whole, volume.array.shape)
        seconds = {"prepare": prepared - begin, "infer": inferred - prepared, "restore": time.perf_counter() - inferred}
        tally, confidence = inspected.tally, confidence_of(probability, self.labels)
        signals = summarize(tally, probability, inspected.disagreement) if with_signals else None
        return Prediction(mask, tally.usage, confidence, tally.codebook_distance, seconds, signals)

    @cached_property
    def replacement_codes(self) -> float:
        """Effective number of codes that replace one in a draw of QPM; nan where nothing is drawn by QPM."""
        if not isinstance(self.network, VQSeg) or self.config.perturbation.kind != "qpm":
            return float("nan")
        codebook = self.network.quantizer.codebook().detach().float()
        return effective_codes(codebook, self.network.qpm.temperature_for(codebook))

    def usage(self, volume: Volume) -> NDArray[np.int64]:
        """How often each code (K,) is chosen for the volume."""
        return self._inspect(prepare_volume(volume, self.config.data)).tally.usage

    def signals(
        self,
        volume: Volume,
        draws: int = 0,
        generator: torch.Generator | None = None,
        codebook: Tensor | None = None,
        *,
        image: NDArray[np.float32] | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> StudySignals:
        """What the strategies choose by: that of a prediction, and how far `draws` of the perturbation disagree.

        The same volume has the same signals, unless a `generator` of the draws is given. With another `codebook`
        (K, D) its codes are counted, and nothing else changes. `image` is what `prepare_volume` makes of the volume,
        for those who look at it again and again. What `go_on` raises ends it, as in `predict`.
        """
        if image is None:
            image = prepare_volume(volume, self.config.data)
        found = self._inspect(image, draws, generator, codebook, go_on)
        if not self.segments:
            return summarize_image(found.tally, len(self.labels))
        return summarize(found.tally, found.probability, found.disagreement)

    @torch.inference_mode()
    def _inspect(
        self,
        image: NDArray[np.float32],
        draws: int = 0,
        generator: torch.Generator | None = None,
        codebook: Tensor | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> _Inspected:
        data = self.config.data
        assert data.patch_size is not None
        mirrored = self.config.views.flip_axes if self.config.inference.mirror else ()
        generator = generator or torch.Generator().manual_seed(0)
        tally = WindowTally(self.network, self.config, mirrored, draws, generator, codebook)
        tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
        batch = tensor[None] if data.slice_axis is None else tensor.movedim(data.slice_axis + 1, 0)
        window = self._window(batch.shape[2:], data.patch_size)
        with self._turn:
            parts = [
                slide(
                    part,
                    window,
                    tally,
                    at_a_time=SLICES_AT_A_TIME if data.spatial_dims == 2 else 1,
                    outside=float(image.min()),
                    device=self.device,
                    go_on=go_on,
                )
                for part in batch.split(SLICES_AT_A_TIME)
            ]
        probability, *disagreement = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return _Inspected(probability, disagreement[0] if disagreement else None, tally)

    def _window(self, shape: torch.Size, patch: tuple[int, ...]) -> tuple[int, ...]:
        stride = self.network.stride
        whole = more_than_one_element(tuple(-(-size // stride) * stride for size in shape), stride)
        return whole if np.prod(whole) <= PATCHES_IN_ONE_PIECE * np.prod(patch) else tuple(patch)
