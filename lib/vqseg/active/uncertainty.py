"""How unsure a model is of each voxel, and of each structure of a study: pure functions on class probabilities."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["mean_by_structure", "mutual_information", "predictive_entropy", "share_of_classes"]


def predictive_entropy(probability: Tensor) -> Tensor:
    """H(p) = - sum_c p_c ln p_c in nats (B, *spatial), of `probability` (B, C, *spatial).

    Shannon, Bell System Technical Journal 27, 1948; to choose what is labelled: Settles, Active Learning Literature
    Survey, University of Wisconsin, 2009.
    """
    return torch.special.entr(probability).sum(1)


def mutual_information(draws: Iterable[Tensor]) -> Tensor:
    """I = H(mean_m p_m) - mean_m H(p_m) in nats (B, *spatial), of M `draws` (B, C, *spatial).

    How far M answers of a perturbed model disagree (BALD: Houlsby et al., arXiv 1112.5745; perturbed by QPM, or by
    dropout where that is what the model was trained with); 0 when all are the same. The draws are seen one by one, so
    that memory does not grow with their number.
    """
    count, total, entropy = 0, torch.zeros(()), torch.zeros(())
    for probability in draws:
        count += 1
        total = probability + total.to(probability)
        entropy = predictive_entropy(probability) + entropy.to(probability)
    return (predictive_entropy(total / count) - entropy / count).clamp(min=0)


def share_of_classes(values: Tensor, probability: Tensor) -> Tensor:
    """Mean over a whole study of v p_c for every class (L + 1,), of `values` v (B, *spatial) and `probability`
    (B, L + 1, *spatial), background first; together they are the mean of the values.

    A structure that is larger has more of it. With the entropy for v it is the class-stratified uncertainty of Lueth
    et al., arXiv 2601.13677, whose patches are studies here.
    """
    return torch.stack([(values * probability[:, number]).mean() for number in range(probability.shape[1])])


def mean_by_structure(values: Tensor, probability: Tensor, threshold: float = 0.05) -> Tensor:
    """Mean of `values` (B, *spatial) over the voxels that may belong to each structure (L,); nan where none may.

    `probability` (B, L + 1, *spatial), background first; a voxel may belong to a structure whose probability is above
    `threshold`. Over the whole image the background, of which every model is sure, would outvote everything else, and
    over all structures at once the largest of them.
    """
    chosen = (values[probability[:, structure] > threshold] for structure in range(1, probability.shape[1]))
    # The mean of nothing is nan.
    means = [some.mean() for some in chosen]
    return torch.stack(means) if means else values.new_zeros(0)
