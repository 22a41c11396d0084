"""The head and what is asked of its logits, chunk by chunk: the logits of a whole sequence are never made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


# Logits of one chunk, which one product with the head's weights makes: 128 MB in fp32, whatever the vocabulary.
CHUNK_ELEMENTS = 2**25
# Logits that are looked at together: on a CPU those that its cache holds, or every look would go to memory.
BLOCK_ELEMENTS = {"cpu": 2**18}

BlockLoss = Callable[[Tensor, slice], Tensor]
"""Logits (tokens, vocabulary) and which tokens of a chunk they are of, to terms (terms,), each a sum over tokens."""

ChunkLoss = Callable[[slice], BlockLoss]
"""Which of all tokens a chunk holds, to what is asked of it block by block."""


def rows_a_chunk(vocabulary: int) -> int:
    """How many tokens a chunk holds."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


@dataclass(frozen=True)
class Head:
    """What makes logits (tokens, vocabulary) of final hidden states (tokens, hidden).

    Attributes:
        module: the model's own.
        transform: what the model does to its output, see `logit_transform`.
    """

    module: nn.Module
    transform: Callable[[Tensor], Tensor]

    def __call__(self, states: Tensor) -> Tensor:
        """The logits."""
        return self.transform(self.module(states))


def head_losses(head: Head, states: Tensor, loss: ChunkLoss, weights: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Losses on logits, whose gradients are taken together with each chunk, so that no chunk's logits outlive it.

    Args:
        head: its parameters that require a gradient get theirs.
        states: (tokens, hidden), at the kept tokens alone.
        loss: of each chunk.
        weights: (terms,) how much each term counts.
        rows: tokens in a chunk.

    Returns:
        The weighted sum of the terms, to be differentiated, and the terms themselves (terms,), detached.
    """
    trained = [parameter for parameter in head.module.parameters() if parameter.requires_grad]
    wanted = torch.is_grad_enabled() and (states.requires_grad or bool(trained))
    return _ChunkedHead.apply(_Pass(head, trained, loss, rows, wanted), weights, states, *trained)


@dataclass(frozen=True)
class _Pass:
    """One way through all chunks; `wanted` says whether gradients are."""

    head: Head
    trained: list[nn.Parameter]
    loss: ChunkLoss
    rows: int
    wanted: bool

    def run(self, weights: Tensor, states: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The terms (terms,), and the gradients of their weighted sum by the states and by what is trained."""
        terms = torch.zeros_like(weights)
        gradients = [torch.zeros_like(tensor) for tensor in (states, *self.trained)] if self.wanted else []
        for start in range(0, len(states), self.rows):
            chunk = slice(start, min(start + self.rows, len(states)))
            inputs = states[chunk].detach().requires_grad_(self.wanted)
            with torch.set_grad_enabled(self.wanted):
                # Not through its hooks: those of FSDP count on one call a step, and have the weights whole by now.
                logits = self.head.module.forward(inputs)
            terms += self._through_blocks(weights, logits.detach(), self.loss(chunk))
            if self.wanted:
                self._differentiate_head(inputs, logits, [gradients[0][chunk], *gradients[1:]])
        return terms, gradients

    def _through_blocks(self, weights: Tensor, values: Tensor, loss: BlockLoss) -> Tensor:
        """The terms of a chunk; `values` (chunk, vocabulary), the head's output, is overwritten by its gradient."""
        terms = torch.zeros_like(weights)
        rows = max(1, BLOCK_ELEMENTS.get(values.device.type, CHUNK_ELEMENTS) // values.shape[-1])
        for start in range(0, len(values), rows):
            block = slice(start, start + rows)
            raw = values[block].detach().requires_grad_(self.wanted)
            with torch.set_grad_enabled(self.wanted):
                found = loss(self.head.transform(raw), block)
                total = (weights * found).sum()
            terms += found.detach()
            if self.wanted:
                values[block] = torch.autograd.grad(total, raw)[0]
        return terms

    def _differentiate_head(self, inputs: Tensor, logits: Tensor, gradients: list[Tensor]) -> None:
        """Add the gradients of a chunk, whose logits have been overwritten by theirs."""
        by_logits, totals = logits.detach(), dict(zip((inputs, *self.trained), gradients, strict=True))
        module = self.head.module
        if isinstance(module, nn.Linear) and module.weight in totals:
            # A product that is added in place: autograd would make room for another gradient as large as the weight.
            _add_product(totals.pop(module.weight), by_logits.T, inputs.detach())
        found = torch.autograd.grad(logits, list(totals), by_logits)
        for total, more in zip(totals.values(), found, strict=True):
            total += more


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Pass, weights: Tensor, states: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        terms, ctx.gradients = work.run(weights, states)
        ctx.mark_non_differentiable(terms)
        return (weights * terms).sum(), terms

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        return (None, None, *(gradient.mul_(scale.to(gradient.dtype)) for gradient in gradients))


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype == second.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second.to(first.dtype)


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
