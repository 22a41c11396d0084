"""Average normalized Levenshtein similarity: right up to slips of reading."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from .answer_metric import AnswerMetric


_THRESHOLD = 0.5


class Anls(AnswerMetric):
    """ANLS in percent: 1 - edit distance / longer length to the nearest reference, 0 below a half, mean over rows.

    Capitals do not matter, and white space is one blank. A similarity of just a half counts, as in the official script
    and in lmms-eval; the equation of the paper leaves it out.
    """

    name = "anls"
    source = (
        "Biten et al., ICDAR 2019 Competition on Scene Text VQA (arXiv 1907.00490), equation 1; "
        "Mathew et al., DocVQA (arXiv 2007.00398)."
    )

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Similarity to the nearest reference: 0 or in [0.5, 1]."""
        answer = _plain(prediction)
        nearest = max(Levenshtein.normalized_similarity(answer, _plain(reference)) for reference in references)
        return nearest if nearest >= _THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
