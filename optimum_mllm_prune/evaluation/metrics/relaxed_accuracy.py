"""ChartQA: numbers read from a chart may be a little off."""

import math
from collections.abc import Sequence

from .answer_metric import AnswerMetric


_TOLERANCE = 0.05


class RelaxedAccuracy(AnswerMetric):
    """Share of answers within 5 % of a reference that is a number, or equal to one that is not, in percent.

    Read as pix2struct and lmms-eval read them: 5% is the number 0.05, and texts are compared without capitals; so is
    the reference 0, of which there is no share. White space at both ends does not matter.
    """

    name = "relaxed_accuracy"
    source = (
        "Masry et al., ChartQA (arXiv 2203.10244), section 5.1, after Methani et al., PlotQA (arXiv 1909.00997); "
        "https://github.com/google-research/pix2struct, pix2struct/metrics.py, relaxed_correctness."
    )

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if near enough to a reference, else 0."""
        return float(any(_near(prediction.strip(), reference.strip()) for reference in references))


def _near(answer: str, target: str) -> bool:
    found, wanted = _number(answer), _number(target)
    if found is None or not wanted:
        return answer.lower() == target.lower()
    return abs(found - wanted) / abs(wanted) <= _TOLERANCE


def _number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
