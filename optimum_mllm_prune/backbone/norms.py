"""What a norm computes, found by experiment: its class does not say."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class NormKind:
    """A norm gives x / |x| * (offset + weight) + bias, |x| a root mean square over the row.

    Attributes:
        offset: 1 in Gemma's norms, 0 in most.
        centres: whether the row's mean is taken off first, as in a layer norm.
    """

    offset: float
    centres: bool


@torch.no_grad()
def kind_of_norm(module: nn.Module) -> NormKind | None:
    """The kind of a module with one weight a dimension; None where what it gives depends on the size of its row."""
    if getattr(module, "weight", None) is None:
        return None
    row = torch.linspace(-1, 2, len(module.weight), device=module.weight.device).unsqueeze(0)
    zeros, ones = _given(module, row, 0.0), _given(module, row, 1.0)
    # What the norm adds to avoid a division by zero is felt at any size.
    if not torch.allclose(_given(module, 4 * row, 1.0), ones, rtol=1e-2):
        return None
    offset = round(float((zeros / (ones - zeros)).median()))
    return NormKind(offset, torch.allclose(_given(module, row + 1, 1.0), ones, atol=1e-2))


@torch.no_grad()
def scale_gain(norm: nn.Module, factor: float) -> None:
    """Change a norm's weights so that it gives `factor` times what it gave, but for its bias."""
    offset = kind_of_norm(norm).offset
    norm.weight.copy_(factor * (offset + norm.weight.float()) - offset)


def _given(norm: nn.Module, row: Tensor, weight: float) -> Tensor:
    """What the norm gives of a row (1, dimensions) when all its weights are `weight` and its biases 0."""
    parameters = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in norm.named_parameters()}
    return functional_call(norm, parameters | {"weight": torch.full_like(parameters["weight"], weight)}, (row,))
