"""POPE: does the model say yes to what is in the image, and to nothing else."""

import re
from collections.abc import Sequence

import numpy as np

from ...errors import UserInputError
from .answer_metric import ANSWERS, check_answers
from .row_metric import RowMetric, percent


_NEGATIVE = {"no", "not"}


class YesNoF1(RowMetric):
    """F1 of the answer yes, in percent, with accuracy, precision, recall, yes ratio and unclear ratio beside it.

    Answers are read as POPE's script reads them: of the first sentence, commas taken out, an answer is no if one of
    its words is no or not, and yes otherwise. Capitals and line breaks, which the script trips over, do not matter. An
    answer with none of yes, no and not therefore counts as yes; the unclear ratio says how many do. Every reference of
    a row is yes or no.
    """

    name = "yes_no_f1"
    source = "Li et al., POPE (arXiv 2305.10355), and https://github.com/AoiDragon/POPE, evaluate.py."
    inputs = ANSWERS

    def contributions(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """float64 (rows, 5): true positive, false positive, true negative, false negative, unclear; each 0 or 1.

        Raises:
            UserInputError: as for other answers, or a row's references are not all yes or all no.
        """
        check_answers(predictions, references)
        words = [_words(answer) for answer in predictions]
        said = np.array([not _NEGATIVE & row for row in words])
        true = np.array([_is_yes(accepted, row) for row, accepted in enumerate(references)])
        unclear = np.array([not (_NEGATIVE | {"yes"}) & row for row in words])
        return np.stack([said & true, said & ~true, ~said & ~true, ~said & true, unclear], axis=1).astype(np.float64)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """F1 in percent, (...), of sums (..., 5); 0 where there is no yes at all."""
        hit, false_alarm, missed = sums[..., 0], sums[..., 1], sums[..., 3]
        return percent(2 * hit, 2 * hit + false_alarm + missed)

    def extras(self, sums: np.ndarray) -> dict[str, float]:
        """Accuracy, precision, recall, yes ratio (share of answers that are yes) and unclear ratio, in percent."""
        hit, false_alarm, right_no, missed, unclear = sums
        rows = hit + false_alarm + right_no + missed
        shares = {
            "accuracy": (hit + right_no, rows),
            "precision": (hit, hit + false_alarm),
            "recall": (hit, hit + missed),
            "yes_ratio": (hit + false_alarm, rows),
            "unclear_ratio": (unclear, rows),
        }
        return {name: float(percent(part, whole)) for name, (part, whole) in shares.items()}


def _words(answer: str) -> set[str]:
    return set(answer.split(".")[0].replace(",", "").lower().split())


def _is_yes(references: Sequence[str], row: int) -> bool:
    found = {re.sub(r"\W", "", reference).lower() for reference in references}
    if found not in ({"yes"}, {"no"}):
        raise UserInputError(
            f"The references of row {row} are not all yes or all no: choose another metric than yes_no_f1."
        )
    return found == {"yes"}
