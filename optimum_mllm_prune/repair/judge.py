"""Whether a change does the answers any good: those of rows that nothing was fitted to, before and after."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..calibration.batches import Batch
from ..calibration.engine import answer_logits


class Judge:
    """Cross entropy of the right answers, in nats, of a model that is being changed.

    Args:
        model: in eval mode, without gradients.
        batches: of rows to which nothing is fitted; none, and nothing is known.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches
        self._tokens = sum(batch.answer_tokens for batch in batches)

    def losses(self) -> Tensor:
        """Of the model as it is now: fp64 (rows,), summed over each row's answer tokens."""
        found = [torch.zeros(0, dtype=torch.float64)]
        for batch in self.batches:
            logits, answers, rows = answer_logits(self.model, batch)
            nats = cross_entropy(logits.float(), answers, reduction="none").double()
            found.append(torch.zeros(len(batch.labels), dtype=torch.float64).index_add(0, rows.cpu(), nats.cpu()))
        return torch.cat(found)

    def by_token(self, losses: Tensor) -> float | None:
        """Mean over all answer tokens; None where there are none."""
        return losses.sum().item() / self._tokens if self._tokens else None


def likelier(before: Tensor, after: Tensor) -> bool:
    """Whether the answers became likelier: losses of the same rows, fp64 (rows,) nats; not where there are none."""
    return bool(after.sum() < before.sum())


def surely_less_likely(before: Tensor, after: Tensor) -> bool:
    """Whether the answers became less likely, by more than the standard error of the mean over rows; as above."""
    loss = after - before
    return len(loss) > 1 and bool(loss.mean() > loss.std() / len(loss) ** 0.5)
