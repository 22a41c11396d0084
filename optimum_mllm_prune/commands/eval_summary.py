"""The tables of an evaluation on the screen."""

from ..evaluation.efficiency import efficiency_rows
from ..evaluation.report import EvaluationReport
from ..evaluation.table import quality_rows, task_rows
from .summary import aligned


def evaluation_table(report: EvaluationReport) -> str:
    """All that was measured: quality, benchmarks, efficiency."""
    efficiency = efficiency_rows(report.efficiency) if report.efficiency else []
    tables = [aligned(rows) for rows in (quality_rows(report.quality), task_rows(report), efficiency) if rows]
    return "\n\n".join([*tables, f"seconds: {report.seconds:.1f}"])
