"""What is to be evaluated, on what, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserInputError
from .efficiency.measure import check_numbers
from .metrics import METRICS
from .predictions import AGREEMENT
from .tasks import check_tasks


DEFAULT_METRICS = ("exact_match", "answer_perplexity")


@dataclass(frozen=True)
class EfficiencyJob:
    """How to measure efficiency; see `efficiency.measure_efficiency`. Raises UserInputError as that does."""

    batch_sizes: tuple[int, ...] = (1, 8)
    new_tokens: int = 32
    repeats: int = 5

    def __post_init__(self) -> None:
        check_numbers(batch_sizes=self.batch_sizes, new_tokens=self.new_tokens, repeats=self.repeats)


@dataclass(frozen=True)
class TasksJob:
    """Which benchmarks of which harness to run; see `tasks.run_tasks`. Raises UserInputError as that does."""

    names: tuple[str, ...]
    harness: str = "lm-eval"
    harness_model: str | None = None
    folder: Path | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_tasks(self.names, self.harness, self.folder, self.limit)


@dataclass(frozen=True)
class EvaluationJob:
    """What is to be evaluated, on what, and how.

    Attributes:
        model: folder or Hub id.
        baseline: of the model to compare with; None for none.
        dataset: rows with right answers: a folder, file or Hub id; None measures no quality of our own.
        dataset_split: split of the rows; None as for calibration.
        num_samples: rows to draw; None takes all.
        seed: of the draw and of the resampling.
        metrics: names; empty takes the default ones, and `token_agreement` beside a baseline.
        by: column whose values are scored apart.
        batch_size: rows run together.
        max_new_tokens: longest answer in tokens.
        efficiency: how to measure it; None leaves it out.
        tasks: benchmarks to hand over; None for none.
        dtype: number format of both models; "auto" as saved.
        device: where they run; None for the first GPU, else the CPU.
        device_map: how to spread them over devices instead.
        command: the command line, to be written down.
        hub: `revision`, `token`, `cache_dir` of the model.
        baseline_revision: of the baseline.

    Raises:
        UserInputError: nothing is to be measured, a metric is unknown or lacks what it compares with, or a device map
            is given for benchmarks, whose harness does not take it.
    """

    model: str
    baseline: str | None = None
    dataset: str | None = None
    dataset_split: str | None = None
    num_samples: int | None = None
    seed: int = 42
    metrics: tuple[str, ...] = ()
    by: str | None = None
    batch_size: int = 16
    max_new_tokens: int = 48
    efficiency: EfficiencyJob | None = None
    tasks: TasksJob | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: Any = None
    command: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    baseline_revision: str | None = None

    def __post_init__(self) -> None:
        if not (self.dataset or self.efficiency or self.tasks):
            raise UserInputError("nothing is to be measured: name a dataset, efficiency or tasks.")
        for name, least in (("num_samples", 1), ("batch_size", 1), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserInputError(f"{name} must be at least {least}, got {value}.")
        if self.tasks and self.device_map is not None:
            raise UserInputError("device_map is not handed over with tasks: name a device, or measure them without.")
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserInputError(f"unknown metric '{metric}': use one of {', '.join(METRICS)}.")
        if AGREEMENT in self.metrics and self.baseline is None:
            raise UserInputError(f"{AGREEMENT} compares two models: name a baseline.")

    @property
    def chosen_metrics(self) -> tuple[str, ...]:
        """The named metrics, or the default ones."""
        return self.metrics or DEFAULT_METRICS + ((AGREEMENT,) if self.baseline else ())
