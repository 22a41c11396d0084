"""Quality before and after, measured by greedy generation."""

from .generation import generate_answers, reference_answers
from .quality import exact_match, exact_match_by_group, retained


__all__ = ["exact_match", "exact_match_by_group", "generate_answers", "reference_answers", "retained"]
