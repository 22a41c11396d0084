"""Metrics that are the mean of a score of each answer."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from datasets import Features, List, Value

from ...errors import UserInputError
from .row_metric import RowMetric, check_rows, percent


ANSWERS = Features({"predictions": Value("string"), "references": List(Value("string"))})


class AnswerMetric(RowMetric):
    """Mean over rows of `score`, in percent.

    Predictions are one text a row, references one or more acceptable texts a row.
    """

    inputs = ANSWERS

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> float:
        """How good one answer is beside its references (one or more): in [0, 1]."""

    def contributions(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """float64 (rows, 2): the row's score and 1. Raises UserInputError as `check_answers` does."""
        check_answers(predictions, references)
        scores = [self.score(answer, accepted) for answer, accepted in zip(predictions, references, strict=True)]
        return np.stack([np.array(scores, dtype=np.float64), np.ones(len(scores))], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Mean score in percent, (...), of sums (..., 2)."""
        return percent(sums[..., 0], sums[..., 1])


def check_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise UserInputError unless there are rows, as many predictions as references, and every row has references.

    A text where a list of texts belongs is refused: its letters would be read as references.
    """
    check_rows(predictions, references)
    for row, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise UserInputError(f"The references of row {row} are a text: give a list of acceptable answers.")
        if len(accepted) == 0:
            raise UserInputError(f"Row {row} has no answer to compare with: add one or take the row out.")
