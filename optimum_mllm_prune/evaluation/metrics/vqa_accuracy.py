"""The accuracy of VQA: an answer is right as far as people agree with it."""

from collections.abc import Sequence

from .answer_metric import AnswerMetric
from .vqa_normalization import normalize_answer


_ENOUGH = 3


class VqaAccuracy(AnswerMetric):
    """VQA accuracy in percent: min(people who gave this answer / 3, 1), mean over all subsets without one of them.

    A row's references are what several people answered, ten in VQAv2, repeated as often as it was given. Answers and
    references are normalized as in the official script, which spares rows on which all people agree; here Yes is yes
    in those rows as well. Of fewer than four people there are no three others to agree: there an answer equal to any
    reference counts in full.
    """

    name = "vqa_accuracy"
    source = "Antol et al., VQA (arXiv 1505.00468), and https://visualqa.org/evaluation.html."

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Share of agreement in [0, 1]."""
        people = len(references)
        answer = normalize_answer(prediction)
        matches = sum(normalize_answer(reference) == answer for reference in references)
        if people <= _ENOUGH:
            return float(matches > 0)
        left_in, left_out = min(matches / _ENOUGH, 1), min((matches - 1) / _ENOUGH, 1)
        return ((people - matches) * left_in + matches * left_out) / people
