"""Layers merged into a layer before them: which can be, where each goes, and the weights that come of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn


Weights = Mapping[str, Tensor]
"""The parameters of a layer by their names within it."""


def weights_of(layers: nn.ModuleList) -> list[Weights]:
    """The parameters of every layer; no copies."""
    return [dict(layer.named_parameters()) for layer in layers]


def unmergeable(layers: nn.ModuleList) -> dict[int, str]:
    """Layers that cannot be merged into the one before them, with the reason.

    Any other can be merged into the nearest one before it that stays: of a row of alike layers the first stays.
    """
    shapes = [{name: tuple(weight.shape) for name, weight in weights.items()} for weights in weights_of(layers)]
    others = {
        i: "its weights are not those of the layer before it, so the two cannot be merged"
        for i in range(1, len(shapes))
        if shapes[i] != shapes[i - 1]
    }
    return {0: "no layer is before it to be merged into"} | others


def absorbed(removed: Collection[int], num_layers: int) -> dict[int, list[int]]:
    """Where removed layers are merged: the nearest layer before them that stays, to those that it takes up, ascending.

    Layers with none before them that stays are left out.
    """
    found: dict[int, list[int]] = {}
    into = None
    for layer in range(num_layers):
        if layer not in removed:
            into = layer
        elif into is not None:
            found.setdefault(into, []).append(layer)
    return found


def merged(weights: Sequence[Weights], into: int, others: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Names and new weights of a layer that takes up others: t* = t_l + sum_k (t_(l+k) - t_l), over all their weights.

    Source: Yang et al., LaCo (arXiv 2402.11187), the merge of layers that it calls RDSC.

    Args:
        weights: of every layer as it was before any merge; left as they are.
        into: the layer l.
        others: the layers l + k; names and shapes are those of l.

    Returns:
        One tensor after the other, summed in fp32 or better, in the format and on the device of l.
    """
    for name, own in weights[into].items():
        start = own.detach().to(_at_least_fp32(own))
        total = start.clone()
        for other in others:
            total += weights[other][name].detach().to(total) - start
        yield name, total.to(own.dtype)


def _at_least_fp32(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
