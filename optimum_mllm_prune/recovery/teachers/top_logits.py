"""The few likeliest tokens of a distribution, and all the others as one outcome."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..head import rows_a_chunk


class TopLogits(NamedTuple):
    """The k largest logits of each token.

    Attributes:
        values: (tokens, k), in the teacher's number format.
        indices: (tokens, k) int32, ids of the vocabulary.
        rest: (tokens,) fp32, logsumexp of all others divided by the temperature; -inf where there are no others.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


def top_logits(
    head: Callable[[Tensor], Tensor], states: Tensor, vocabulary: int, k: int, temperature: float
) -> TopLogits:
    """Logits chunk by chunk, of which the k largest are kept.

    Args:
        head: states (chunk, hidden) to logits (chunk, vocabulary).
        states: (tokens, hidden), at least one token.
        vocabulary: number of tokens there are.
        k: how many to keep, at most `vocabulary`.
        temperature: tau.
    """
    chunks = [_top(head(chunk), k, temperature) for chunk in states.split(rows_a_chunk(vocabulary))]
    values, indices, rest = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return TopLogits(values.to(states.dtype), indices, rest)


def top_log_probabilities(values: Tensor, rest: Tensor, temperature: float) -> Tensor:
    """(tokens, k + 1) fp32 log-probabilities of the stored tokens and, last, of the rest.

    Args:
        values: (tokens, k) logits.
        rest: (tokens,) as in `TopLogits`; of the same temperature, unless it is -inf.
        temperature: tau.
    """
    columns = torch.cat([values.float() / temperature, rest.unsqueeze(-1)], dim=-1)
    return columns - columns.logsumexp(dim=-1, keepdim=True)


def _top(logits: Tensor, k: int, temperature: float) -> TopLogits:
    values, indices = logits.topk(k, dim=-1)
    others = (logits.float() / temperature).scatter(-1, indices, float("-inf"))
    return TopLogits(values, indices.int(), others.logsumexp(dim=-1))
