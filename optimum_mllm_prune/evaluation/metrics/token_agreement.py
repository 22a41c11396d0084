"""How far two models write the same."""

from collections.abc import Sequence

import numpy as np
from datasets import Features, List, Value

from .row_metric import RowMetric, check_rows, percent


_TOKENS = List(Value("int64"))


class TokenAgreement(RowMetric):
    """Share of positions at which two sequences of generated tokens agree, over all rows, in percent.

    Predictions are the token ids that one model generated, references those of the other, from the same prompts. A row
    has as many positions as the longer sequence: the longer tail disagrees. Two empty sequences agree.
    """

    name = "token_agreement"
    source = (
        "1 - normalized Hamming distance (Hamming, Bell System Technical Journal 29, 1950), the shorter one padded."
    )
    inputs = Features({"predictions": _TOKENS, "references": _TOKENS})

    def contributions(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> np.ndarray:
        """float64 (rows, 2): positions that agree, and positions. Raises UserInputError as `check_rows` does."""
        check_rows(predictions, references)
        pairs = list(zip(predictions, references, strict=True))
        equal = [sum(a == b for a, b in zip(first, second, strict=False)) for first, second in pairs]
        positions = [max(len(first), len(second)) for first, second in pairs]
        return np.stack([equal, positions], axis=1).astype(np.float64)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """Agreement in percent, (...), of sums (..., 2)."""
        return percent(sums[..., 0], sums[..., 1], empty=100.0)
