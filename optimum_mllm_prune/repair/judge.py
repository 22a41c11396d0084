"""Whether a repair does the answers any good: those of rows that decide, before and after."""

from collections.abc import Sequence

from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..calibration.batches import Batch
from ..calibration.engine import answer_logits


class Judge:
    """Mean cross entropy of right answers, in nats a token, of a model that is being changed.

    Args:
        model: in eval mode, without gradients.
        batches: of rows to which nothing is fitted; none, and there is no loss to go by.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches

    def loss(self) -> float | None:
        """Of the model as it is now; None without rows."""
        total, tokens = 0.0, 0
        for batch in self.batches:
            logits, answers, _ = answer_logits(self.model, batch)
            total += cross_entropy(logits.float(), answers, reduction="sum").item()
            tokens += len(answers)
        return total / tokens if tokens else None
