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


def firsts(order: Sequence[int]) -> list[list[int]]:
    """For every number of layers, from none to all of an order, its first ones."""
    return [list(order[:count]) for count in range(len(order) + 1)]


def least_runs(scores: Tensor, kinds: Sequence[str], protected: Mapping[int, str] | Sequence[int]) -> list[list[int]]:
    """For every number of layers, from none to as many as may go in a row, the run of neighbours with the least score.

    No run holds a protected layer, or the last ones of a kind.

    Args:
        scores: fp32 (layers, layers), [l, n - 1] of the n layers from l on.
        kinds: what each layer is.
        protected: layers that must stay.
    """
    choices: list[list[int]] = [[]]
    for count in range(1, len(kinds)):
        runs = [range(first, first + count) for first in range(len(kinds) - count + 1)]
        allowed = [run for run in runs if _may_go(run, kinds, protected)]
        if not allowed:
            break
        choices.append(list(min(allowed, key=lambda run: scores[run[0], count - 1].item())))
    return choices


def _may_go(run: range, kinds: Sequence[str], protected: Mapping[int, str] | Sequence[int]) -> bool:
    left = {kind for layer, kind in enumerate(kinds) if layer not in run}
    return left == set(kinds) and not any(layer in protected for layer in run)


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
