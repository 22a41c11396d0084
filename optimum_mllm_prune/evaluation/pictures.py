"""Which pictures an evaluation makes."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .efficiency import plot_memory
from .efficiency.plots import PLOT_NAME as MEMORY_PLOT
from .plots import CATEGORY_PLOT, SIZE_PLOT, SizedModel, plot_against_size, plot_categories
from .report import EvaluationReport
from .scores import Score


@contextmanager
def drawn(report: EvaluationReport) -> Iterator[list[Path]]:
    """The pictures in a temporary folder, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        draw(report, Path(folder))
        yield sorted(Path(folder).glob("*.png"))


def draw(report: EvaluationReport, folder: Path) -> None:
    """Draw into a folder what the report has figures for: categories, memory, and quality against size."""
    names = {"baseline": report.baseline, "model": report.model}
    if report.baseline == report.model:
        # Folders of one name in two places.
        names["baseline"] += " (baseline)"
    main = next((score for score in report.quality if score.unit == "percent"), None)
    grouped = next((score for score in _first(report.quality, main) if score.groups), None)
    if grouped is not None:
        plot_categories(grouped, folder / CATEGORY_PLOT)
    if report.efficiency:
        plot_memory({names[role]: found for role, found in report.efficiency.items()}, folder / MEMORY_PLOT)
    if report.efficiency and main is not None:
        scores = {"model": main.value, "baseline": main.baseline}
        models = [
            SizedModel(names[role], found.size.weight_bytes, scores[role])
            for role, found in report.efficiency.items()
            if scores[role] is not None
        ]
        plot_against_size(models, f"{main.metric} (%)", folder / SIZE_PLOT)


def _first(scores: Sequence[Score], first: Score | None) -> list[Score]:
    return [score for score in scores if score is first] + [score for score in scores if score is not first]
