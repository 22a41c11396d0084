"""From scores to the parts that go: lowest first, every layer losing the same share."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def layer_order(scores: Tensor, kinds: Sequence[str], protected: Mapping[int, str] | Sequence[int]) -> list[int]:
    """Layers in the order in which they would be removed, least important first.

    Protected layers are left out, and so is the last layer of every kind: a hybrid without any attention layer left
    could not generate.

    Args:
        scores: fp32 (layers,).
        kinds: what each layer is.
        protected: layers that must stay.
    """
    left = Counter(kinds)
    order = []
    for layer in torch.argsort(scores, stable=True).tolist():
        if layer in protected or left[kinds[layer]] == 1:
            continue
        left[kinds[layer]] -= 1
        order.append(layer)
    return order


def weakest(scores: Tensor, remove: int, sets: int = 1) -> list[list[int]]:
    """For every site the units to remove, ascending.

    Args:
        scores: fp32 (sites, units).
        remove: how many units each site loses, a multiple of `sets`.
        sets: the units are this many equal sets (query heads by key-value group), each losing as many.
    """
    by_set = scores.unflatten(1, (sets, -1))
    size = by_set.shape[-1]
    lowest = torch.argsort(by_set, dim=-1, stable=True)[..., : remove // sets]
    units = lowest + torch.arange(sets).unsqueeze(-1) * size
    return [sorted(site) for site in units.flatten(1).tolist()]
