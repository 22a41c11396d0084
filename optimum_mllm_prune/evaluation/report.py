"""`EvaluationReport`: what was measured, as figures."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.evaluated import EVALUATION_NAME
from .efficiency import EfficiencyReport
from .scores import Score
from .tasks import TaskScore


@dataclass(frozen=True)
class EvaluationReport:
    """The figures of one model, beside those of another where there is one.

    Attributes:
        model: id or name of the model.
        baseline: of the model it is compared with; None without.
        dataset: name, split, number of rows and seed of the draw; None where no quality of our own was measured.
        quality: a score for each metric.
        tasks: of the benchmarks that were handed over, by "model" and "baseline".
        efficiency: by "model" and "baseline".
        settings: how answers were made.
        seconds: of the whole evaluation.
        command: the command line.
        versions: of the packages.
    """

    model: str
    baseline: str | None
    dataset: dict[str, Any] | None
    quality: list[Score]
    tasks: dict[str, list[TaskScore]]
    efficiency: dict[str, EfficiencyReport]
    settings: dict[str, Any]
    seconds: float
    command: str | None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a finite number is null."""
        plain = asdict(self)
        plain["efficiency"] = {name: report.to_dict() for name, report in self.efficiency.items()}
        return _finite(plain)

    def save(self, folder: Path) -> None:
        """Write it into a folder as `evaluation.json`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / EVALUATION_NAME).write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
