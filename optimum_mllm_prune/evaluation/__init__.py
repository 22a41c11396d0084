"""Quality and efficiency, before and after."""

from .generation import accepted_answers, generate, generate_answers, reference_answers
from .quality import exact_match, exact_match_by_group, retained


__all__ = [
    "accepted_answers",
    "exact_match",
    "exact_match_by_group",
    "generate",
    "generate_answers",
    "reference_answers",
    "retained",
]
