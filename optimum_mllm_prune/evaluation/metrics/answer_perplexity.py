"""How surprised the model is by the right answers."""

from collections.abc import Sequence

import numpy as np
from datasets import Features, Value

from ...errors import UserInputError
from .row_metric import RowMetric, check_rows


class AnswerPerplexity(RowMetric):
    """exp(sum of negative log-likelihoods / number of tokens), over the answer tokens of all rows; at least 1.

    Predictions are each row's sum of negative log-likelihoods in nats, references its number of answer tokens.
    """

    name = "answer_perplexity"
    source = "Jelinek et al., Perplexity, J. Acoust. Soc. Am. 62 (1977), S63; https://huggingface.co/docs/transformers/perplexity."
    inputs = Features({"predictions": Value("float64"), "references": Value("int64")})
    higher_is_better = False
    unit = None

    def contributions(self, predictions: Sequence[float], references: Sequence[int]) -> np.ndarray:
        """float64 (rows, 2): nats and tokens.

        Raises:
            UserInputError: there is no row, lengths differ, a row has no token or its loss is negative or not finite.
        """
        check_rows(predictions, references)
        nats, tokens = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        if (tokens < 1).any():
            raise UserInputError(
                f"Row {np.argmax(tokens < 1)} has no answer token: add an answer or take the row out."
            )
        unusable = ~(np.isfinite(nats) & (nats >= 0))
        if unusable.any():
            row = np.argmax(unusable)
            raise UserInputError(
                f"The negative log-likelihood of row {row} is {nats[row]}: give a finite number of nats, 0 or more."
            )
        return np.stack([nats, tokens], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Perplexity, (...), of sums (..., 2); infinite where float64 cannot hold it."""
        with np.errstate(over="ignore"):
            return np.exp(sums[..., 0] / sums[..., 1])
