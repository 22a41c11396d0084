"""An evaluation as a table on the screen."""

import math
from collections.abc import Iterator, Sequence

from .report import EvaluationReport
from .scores import Score
from .statistics import Interval


Cells = tuple[str, ...]


def quality_rows(scores: Sequence[Score]) -> list[Cells]:
    """A line for each metric and category: value with its interval, and what stands beside it.

    Empty where there are no scores.
    """
    if not scores:
        return []
    compared = any(score.baseline for score in scores)
    head = ("metric", "rows", "value", *(("baseline", "retained", "p") if compared else ()))
    return [head, *(cells[: len(head)] for score in scores for cells in _lines(score))]


def task_rows(report: EvaluationReport) -> list[Cells]:
    """A line for each benchmark and metric; empty where none was run."""
    own, other = report.tasks.get("model", []), report.tasks.get("baseline", [])
    if not own:
        return []
    head = ("benchmark", "metric", "rows", "value", *(("baseline", "retained") if other else ()))
    before = {(score.task, score.metric): score.value for score in other}
    lines = []
    for score in own:
        cells = (score.task, score.metric, f"{score.n:,}", _number(score.value, score.stderr))
        then = before.get((score.task, score.metric))
        if other:
            kept = f"{100 * score.value / then:.1f} %" if then and score.higher_is_better is not False else "-"
            cells += ("-" if then is None else f"{then:.4g}", kept)
        lines.append(cells)
    return [head, *lines]


def formatted(interval: Interval) -> str:
    """A value with its bounds, which are left out where they are not known."""
    if math.isnan(interval.low):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f} - {interval.high:.2f})"


def _lines(score: Score) -> Iterator[Cells]:
    rows = f"{score.rows:,}"
    unit = " %" if score.unit == "percent" else ""
    beside = ("", "", "")
    if score.baseline is not None:
        beside = (f"{score.baseline.value:.2f}", _kept(score.retained), f"{score.test.p_value:.2g}")
    yield (score.metric, rows, formatted(score.value) + unit, *beside)
    for name, value in score.extras.items():
        yield (f"  {name}", "", f"{value:.2f}", "", "", "")
    for name, group in score.groups.items():
        then = "" if group.baseline is None else f"{group.baseline:.2f}"
        yield (f"  {name}", f"{group.rows:,}", formatted(group.value), then, "", "")


def _kept(retained: Interval | None) -> str:
    return "-" if retained is None or math.isnan(retained.value) else f"{formatted(retained)} %"


def _number(value: float, error: float | None) -> str:
    return f"{value:.4g}" if error is None else f"{value:.4g} +- {error:.2g}"
