"""All that one model says of the rows, as far as the metrics ask for it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from ..calibration.rows import Rows
from .generation import Answer, generate
from .likelihood import Likelihood, answer_likelihoods


PERPLEXITY = "answer_perplexity"
AGREEMENT = "token_agreement"


@dataclass(frozen=True)
class Predictions:
    """What a model said, a row each.

    Attributes:
        answers: as generated; empty where no metric looks at them.
        likelihoods: of the right answers; empty where no metric looks at them.
    """

    answers: Sequence[Answer] = ()
    likelihoods: Sequence[Likelihood] = ()

    def inputs_of(
        self, metric: str, accepted: Sequence[Sequence[str]], baseline: "Predictions | None"
    ) -> tuple[list[Any], list[Any]]:
        """Predictions and references of a metric, a row each.

        Args:
            metric: its name.
            accepted: the right answers of each row.
            baseline: what the other model said; `token_agreement` compares with it.
        """
        if metric == PERPLEXITY:
            return [row.nats for row in self.likelihoods], [row.tokens for row in self.likelihoods]
        if metric == AGREEMENT:
            return [list(row.tokens) for row in self.answers], [list(row.tokens) for row in baseline.answers]
        return [row.text for row in self.answers], [list(texts) for texts in accepted]


def predict(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Rows,
    metrics: Collection[str],
    batch_size: int,
    max_new_tokens: int,
) -> Predictions:
    """Run a model over the rows; every process of a launch must call it. Raises UserInputError as `generate` does.

    Args:
        model: run in eval mode on its own device.
        processor: its processor.
        rows: all rows.
        metrics: names of what will be asked.
        batch_size: rows run together.
        max_new_tokens: longest answer in tokens.
    """
    answers = generate(model, processor, rows, batch_size, max_new_tokens) if set(metrics) - {PERPLEXITY} else ()
    likelihoods = answer_likelihoods(model, processor, rows, batch_size) if PERPLEXITY in metrics else ()
    return Predictions(answers, likelihoods)
