"""Codebooks to count tokens by, in the place of the one that the network learnt: controls of a simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional

from vqseg.config import Config
from vqseg.data.patches import patch_loader
from vqseg.data.preparation import PreparedStudy
from vqseg.networks.vqseg import VQSeg
from vqseg.randomness import seed_for

__all__ = ["CODEBOOKS"]

_PATCHES = 128
_TOKENS_A_CODE = 100


def trained(network: VQSeg, config: Config, images: Iterable[PreparedStudy]) -> Tensor | None:
    """The network's own."""
    return None


def untrained(network: VQSeg, config: Config, images: Iterable[PreparedStudy]) -> Tensor | None:
    """Random codes (K, D), on the features of a network that has learnt."""
    generator = torch.Generator().manual_seed(seed_for(config.train.seed, "untrained codebook"))
    codes = torch.randn(config.model.codebook_size, config.model.code_dim, generator=generator)
    # Of the tokens' own length: of codes of several lengths a few would take all tokens.
    return functional.layer_norm(codes, codes.shape[1:])


def by_k_means(network: VQSeg, config: Config, images: Iterable[PreparedStudy]) -> Tensor | None:
    """The centres (K, D) of as many clusters of the network's tokens: what quantising while training has to beat."""
    batches = patch_loader(list(images), config.data, 1, range(_PATCHES), config.train.seed, labelled=False)
    device = next(network.parameters()).device
    with torch.inference_mode():
        tokens = torch.cat([network.encode(batch.image.to(device)).tokens[0].cpu() for batch in batches])
    codes = config.model.codebook_size
    generator = torch.Generator().manual_seed(seed_for(config.train.seed, "tokens"))
    kept = torch.randperm(len(tokens), generator=generator)[: codes * _TOKENS_A_CODE]
    means = MiniBatchKMeans(codes, n_init=1, random_state=config.train.seed).fit(tokens[kept].numpy())
    return torch.from_numpy(means.cluster_centers_).float()


CODEBOOKS: dict[str, Callable[[VQSeg, Config, Iterable[PreparedStudy]], Tensor | None]] = {
    "trained": trained,
    "untrained": untrained,
    "k_means": by_k_means,
}
