"""What every metric gives: contributions of rows that add up, and the value of their sums."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import getdoc
from typing import Any, Literal

import evaluate
import numpy as np
from datasets import Features

from ...errors import UserInputError


class RowMetric(evaluate.Metric, ABC):
    """A metric whose value depends on sums over rows alone.

    As any `evaluate.Metric` it has `compute`, `add` and `add_batch`. Predictions and references are kept in memory
    unless `keep_in_memory=False` says otherwise.

    Attributes:
        name: the key of the metric's value in what `compute` gives.
        source: where the definition comes from.
        inputs: types of one row of `predictions` and of `references`.
        higher_is_better: whether a larger value is a better model.
        unit: "percent" for values in [0, 100], None for others.
    """

    name: str
    source: str
    inputs: Features
    higher_is_better: bool = True
    unit: Literal["percent"] | None = "percent"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    @abstractmethod
    def contributions(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        """What each row adds: float64 (rows, k).

        Raises:
            UserInputError: there is no row, there are not as many predictions as references, or a row is unusable.
        """

    @abstractmethod
    def value(self, sums: np.ndarray) -> np.ndarray:
        """The metric, float64 (...), of contributions (..., k) summed over rows."""

    def extras(self, sums: np.ndarray) -> dict[str, float]:
        """Figures that belong beside the value, by name, of contributions (k,) summed over rows."""
        return {}

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=getdoc(type(self)), citation=self.source, features=self.inputs)

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        sums = self.contributions(predictions, references).sum(axis=0)
        return {self.name: float(self.value(sums)), **self.extras(sums)}


def check_rows(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise UserInputError unless there are rows and as many predictions as references."""
    if len(predictions) != len(references):
        raise UserInputError(
            f"There are {len(predictions)} predictions and {len(references)} references: give one of each a row."
        )
    if len(predictions) == 0:
        raise UserInputError("There is no row to score: give at least one prediction and its reference.")


def percent(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """100 * part / whole, elementwise (...), and `empty` where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(100 * part, whole, out=np.full(whole.shape, empty), where=whole != 0)
