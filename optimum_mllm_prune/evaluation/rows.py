"""The rows that an evaluation asks about, checked before any weight is loaded."""

from typing import Any

from ..calibration.rows import Rows, open_rows
from ..errors import UserInputError
from .generation import accepted_answers
from .job import EvaluationJob
from .scores import check_references


# More are no categories, and no picture has room for them.
_MOST_CATEGORIES = 100


def rows_of(job: EvaluationJob) -> tuple[Rows | None, list[list[str]], list[Any] | None]:
    """The rows, the right answers of each, and its category; None, none and None where the job names no dataset.

    Raises:
        UserInputError: the rows cannot be read, their answers do not suit a metric, or the column to score by holds no
            categories.
    """
    if job.dataset is None:
        return None, [], None
    options = {key: job.hub[key] for key in ("token", "cache_dir") if job.hub.get(key)}
    rows = open_rows(job.dataset, job.dataset_split, job.num_samples, job.seed, **options)
    accepted = accepted_answers(rows)
    check_references(job.chosen_metrics, accepted)
    return rows, accepted, _categories(rows, job.by) if job.by else None


def _categories(rows: Rows, column: str) -> list[Any]:
    found = rows.column(column)
    if not all(isinstance(value, str | int | float) for value in found) or len(set(found)) > _MOST_CATEGORIES:
        raise UserInputError(
            f"The column {column!r} holds no categories: name one of texts or numbers, at most {_MOST_CATEGORIES} of "
            "them."
        )
    return found
