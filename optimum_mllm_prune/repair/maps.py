"""One linear map of the pruned model: what it is given and should give, and its parameters."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..calibration.batches import Batch, Modality, weight_of_each
from .least_squares import Moments


Pair = Callable[[int], tuple[Tensor, Tensor, Tensor | None] | None]
"""Number of a batch to inputs x (rows, tokens, k), what the map should make of them, y (rows, tokens, d), and how much
each token counts (rows, tokens), None where all count alike. Of a map that is before the tokens, as a projector, x is
(..., k) of parts of images. None where the batch does not reach the map."""


def moments_of(
    batches: Sequence[Batch], held_out: int, pair: Pair, start: Tensor, by_modality: Mapping[str, float] | None
) -> tuple[Moments, Moments]:
    """Moments of the rows to fit to, and of those that decide whether the fit is any good.

    Args:
        batches: calibration batches; padding does not count.
        held_out: from which one on they decide.
        pair: inputs and targets of each.
        start: the map as it is, (d, k) or, with a bias as its last column, (d, k + 1).
        by_modality: how much "image", "prompt" and "answer" tokens count, 1 where not named; None is all alike.
    """
    moments = [Moments.of(start) for _ in range(2)]
    for number, batch in enumerate(batches):
        found = pair(number)
        if found is None:
            continue
        x, y, weights = found
        if x.shape[-1] < start.shape[1]:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
        modality = batch.modality
        if x.shape[:-1] != modality.shape:
            modality = torch.full(x.shape[:-1], Modality.IMAGE)
        counts = weight_of_each(by_modality).float()[modality.long().cpu()].to(x.device)
        counts = counts if weights is None else counts * weights.to(counts)
        here = (modality != Modality.PADDING).to(x.device)
        moments[number >= held_out].add(x[here], y.to(x.device)[here], counts[here])
    return moments[0], moments[1]


def with_bias(module: nn.Linear) -> Tensor:
    """Weight and, as the last column, bias: fp32 (d, k) or (d, k + 1)."""
    weight = module.weight.detach().float()
    return weight if module.bias is None else torch.cat([weight, module.bias.detach().float().unsqueeze(1)], dim=1)


def assign(module: nn.Linear, weight: Tensor) -> None:
    """Give a module new parameters; the old ones, which others may share, are not changed."""
    dtype, trains = module.weight.dtype, module.weight.requires_grad
    if module.bias is not None:
        module.bias = nn.Parameter(weight[:, -1].to(dtype).clone(), trains)
        weight = weight[:, :-1]
    module.weight = nn.Parameter(weight.to(dtype).contiguous(), trains)
