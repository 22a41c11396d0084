"""At which positions a loss is taken."""

from typing import Literal

import torch
from torch import Tensor

from ..calibration.batches import Modality


Tokens = Literal["answer", "text", "all"]
TOKENS: tuple[Tokens, ...] = ("answer", "text", "all")


def positions(modality: Tensor, tokens: Tokens) -> Tensor:
    """Bool (rows, length): the positions of a right-padded batch at which a loss is taken; never padding.

    Args:
        modality: (rows, length) int8, values of `Modality`.
        tokens: "answer": where the next token is one of an answer; "text": where the next token is text, of prompt or
            answer; "all": every real token, images included.
    """
    if tokens == "all":
        return modality != Modality.PADDING
    next_one = following(modality, Modality.PADDING)
    answer = next_one == Modality.ANSWER
    return answer if tokens == "answer" else answer | (next_one == Modality.PROMPT)


def following(values: Tensor, last: int) -> Tensor:
    """(rows, length): at each position the value of the token that follows it, `last` at the last."""
    shifted = torch.full_like(values, last)
    shifted[:, :-1] = values[:, 1:]
    return shifted


def counts(modality: Tensor) -> Tensor:
    """(3,) int64: how many positions each of `TOKENS` has."""
    return torch.stack([positions(modality, tokens).sum() for tokens in TOKENS])


def answer_tokens(ids: Tensor, modality: Tensor) -> Tensor:
    """(tokens,): the tokens that follow the answer positions, row by row. `ids` and `modality` are (rows, length)."""
    return ids[:, 1:][positions(modality, "answer")[:, :-1]]
