"""Answers equal to the letter."""

from collections.abc import Sequence

from .answer_metric import AnswerMetric


class ExactMatch(AnswerMetric):
    """Share of answers equal to one of their references to the letter, white space at both ends aside, in percent."""

    name = "exact_match"
    source = "Rajpurkar et al., SQuAD (arXiv 1606.05250), here without its normalization of texts."

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if equal to a reference, else 0."""
        return float(prediction.strip() in [reference.strip() for reference in references])
