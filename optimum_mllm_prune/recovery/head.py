"""The head and what is asked of its logits, chunk by chunk: the logits of a whole sequence are never made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


# Logits of one chunk: 64 MB in fp32, whatever the vocabulary.
CHUNK_ELEMENTS = 2**24

ChunkLoss = Callable[[Tensor, slice], Tensor]
"""Logits (chunk, vocabulary) and which of the tokens they are, to a vector of terms (terms,), each a sum over tokens."""


def rows_a_chunk(vocabulary: int) -> int:
    """How many tokens a chunk holds."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def head_losses(
    head: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    states: Tensor,
    loss: ChunkLoss,
    weights: Tensor,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Losses on logits, whose gradients are taken together with each chunk, so that no chunk's logits outlive it.

    Args:
        head: states (chunk, hidden) to logits (chunk, vocabulary).
        parameters: those of the head; the ones that require a gradient get theirs.
        states: (tokens, hidden), at the kept tokens alone.
        loss: of one chunk.
        weights: (terms,) how much each term counts.
        rows: tokens in a chunk.

    Returns:
        The weighted sum of the terms, to be differentiated, and the terms themselves (terms,), detached.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _ChunkedHead.apply(head, loss, rows, weights, states, *trained)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Callable, loss: ChunkLoss, rows: int, weights: Tensor, states: Tensor, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        terms = torch.zeros_like(weights)
        wanted = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(tensor) for tensor in (states, *trained)] if wanted else []
        for start in range(0, len(states), rows):
            chunk = slice(start, min(start + rows, len(states)))
            inputs = states[chunk].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                found = loss(head(inputs), chunk)
                total = (weights * found).sum()
            terms += found.detach()
            if wanted:
                of_states, *of_trained = torch.autograd.grad(total, (inputs, *trained), allow_unused=True)
                _add(gradients[0][chunk], of_states)
                for gradient, more in zip(gradients[1:], of_trained, strict=True):
                    _add(gradient, more)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(terms)
        return (weights * terms).sum(), terms

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        return (None, None, None, None, *(gradient.mul_(scale.to(gradient.dtype)) for gradient in gradients))


def _add(total: Tensor, more: Tensor | None) -> None:
    if more is not None:
        total += more


def logit_transform(raw: Tensor, logits: Tensor, cap: float | None) -> Callable[[Tensor], Tensor]:
    """What the model does to its head's output, from one example of both: nothing, a scale, a soft cap, or both.

    Args:
        raw: output of the head (tokens, vocabulary).
        logits: what the model makes of it.
        cap: the config's `final_logit_softcapping`, which not every model with such a config applies.

    Raises:
        ValueError: none of these explains the logits.
    """
    raw, logits = raw.detach().float(), logits.detach().float()
    ways = [_scaled(raw, logits)] + ([_capped(raw, logits, cap)] if cap else [])
    errors = [(way(raw) - logits).abs().max().item() for way in ways]
    best = errors.index(min(errors))
    # Rounding of a 16-bit format, and not more.
    if errors[best] > 2e-2 * logits.abs().max().item():
        raise ValueError("the model makes its logits from the head's output in a way that is not known")
    return ways[best]


def _scaled(raw: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
    scale = ((logits * raw).sum() / raw.square().sum()).item()
    # A number format's rounding is no scale.
    return (lambda values: values) if abs(scale - 1) < 1e-2 else (lambda values: values * scale)


def _capped(raw: Tensor, logits: Tensor, cap: float) -> Callable[[Tensor], Tensor]:
    before = cap * torch.atanh((logits / cap).clamp(-1 + 1e-6, 1 - 1e-6))
    scaled = _scaled(raw, before)
    return lambda values: cap * torch.tanh(scaled(values) / cap)
