"""How likely a model finds the right answers."""

from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, ProcessorMixin

from ..calibration.batches import make_batch
from ..calibration.engine import answer_logits
from ..calibration.rows import as_rows
from .dealing import by_batches


class Likelihood(NamedTuple):
    """Of a row's answer tokens.

    Attributes:
        nats: sum of their negative log-likelihoods.
        tokens: how many they are.
    """

    nats: float
    tokens: int


@torch.no_grad()
def answer_likelihoods(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Any, batch_size: int = 8
) -> list[Likelihood]:
    """Negative log-likelihood of every row's answer tokens, summed in fp64, with the right tokens before each.

    Every process of a launch must call it; batches are dealt out to them.

    Args:
        model: run in eval mode on its own device.
        processor: its processor, with a chat template.
        rows: rows in any form the pruner reads.
        batch_size: rows a forward pass.

    Raises:
        UserInputError: a row cannot be read, or has no answer.
    """
    model.eval()
    rows = as_rows(rows)

    def measure(positions: list[int]) -> list[Likelihood]:
        batch = make_batch(processor, [rows[position] for position in positions]).to(model.device, model.dtype)
        logits, tokens, row = answer_logits(model, batch)
        losses = cross_entropy(logits.float(), tokens, reduction="none").cpu().double()
        nats = torch.zeros(len(positions), dtype=torch.float64).index_add(0, row.cpu(), losses)
        counts = torch.bincount(row.cpu(), minlength=len(positions))
        return [Likelihood(*pair) for pair in zip(nats.tolist(), counts.tolist(), strict=True)]

    return by_batches(rows, batch_size, measure, "Scoring answers")
