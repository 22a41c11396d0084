"""From a checkpoint to figures: all that `optimum-cli mllm-eval` measures, as one function."""

import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils.hub import cached_file

from ..calibration.processors import load_processor
from ..calibration.rows import Rows
from ..checkpoint import free_memory
from ..errors import UserInputError
from ..loading import load_config, load_model, public_name
from ..version import __version__
from .efficiency import EfficiencyReport, Loaded, measure_efficiency
from .harnesses import HARNESSES
from .job import EvaluationJob
from .predictions import AGREEMENT, PERPLEXITY, Predictions, predict
from .report import EvaluationReport
from .rows import rows_of
from .scores import Score, scored
from .tasks import TaskScore, run_tasks


MODEL, BASELINE = "model", "baseline"
_PACKAGES = ("torch", "transformers", "evaluate")


def evaluate(job: EvaluationJob) -> EvaluationReport:
    """Measure quality, efficiency and benchmarks, as far as the job asks; every process of a launch must call it.

    Raises:
        UserInputError: a model, the rows or a benchmark cannot be used, the two models do not write with the same
            tokens where these are compared, or efficiency or benchmarks are asked of several processes.
    """
    start = time.perf_counter()
    if PartialState().num_processes > 1 and (job.efficiency or job.tasks):
        raise UserInputError("efficiency and tasks are measured by one process: start without accelerate launch.")
    if job.tasks:
        HARNESSES[job.tasks.harness].require()
    _refuse_other_tokens(job)
    rows, accepted, groups = rows_of(job)
    said: dict[str, Predictions] = {}
    loaded: dict[str, Loaded] = {}
    for role, name in _roles(job).items():
        if rows is None and job.efficiency is None and Path(name).is_dir():
            # The harness loads it by itself; of the Hub it is fetched here.
            continue
        loaded[role] = _load(job, role)
        if rows is not None:
            said[role] = predict(*loaded[role], rows, job.chosen_metrics, job.batch_size, job.max_new_tokens)
        if not job.efficiency:
            loaded.clear()
            free_memory()
    efficiency = _efficiency(job, loaded)
    loaded.clear()
    free_memory()
    return EvaluationReport(
        model=public_name(job.model),
        baseline=public_name(job.baseline) if job.baseline else None,
        dataset=_told(job, rows),
        quality=_quality(job, said, accepted, groups),
        tasks={role: _tasks(job, role) for role in _roles(job)} if job.tasks else {},
        efficiency=efficiency,
        settings={"batch_size": job.batch_size, "max_new_tokens": job.max_new_tokens, "dtype": job.dtype},
        seconds=round(time.perf_counter() - start, 1),
        command=job.command,
        versions={"optimum_mllm_prune": __version__} | {name: version(name) for name in _PACKAGES},
    )


def _roles(job: EvaluationJob) -> dict[str, str]:
    """Who is measured, the baseline first, as one model is in memory at a time where that suffices."""
    return ({BASELINE: job.baseline} if job.baseline else {}) | {MODEL: job.model}


def _refuse_other_tokens(job: EvaluationJob) -> None:
    """What is counted in tokens says nothing of two models whose tokens are not the same."""
    compared = [metric for metric in job.chosen_metrics if metric in (AGREEMENT, PERPLEXITY)]
    if job.dataset is None or job.baseline is None or not compared:
        return
    own, other = (load_processor(name, **_hub(job, role)) for role, name in _roles(job).items())
    if own.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise UserInputError(
            f"the two tokenizers give other tokens, which {' and '.join(compared)} count: name other metrics, such as "
            "exact_match, or leave the baseline out."
        )


def _hub(job: EvaluationJob, role: str) -> dict[str, Any]:
    options = {key: value for key, value in job.hub.items() if key != "revision" and value}
    revision = job.hub.get("revision") if role == MODEL else job.baseline_revision
    return options | ({"revision": revision} if revision else {})


def _load(job: EvaluationJob, role: str) -> Loaded:
    name, hub = _roles(job)[role], _hub(job, role)
    config = load_config(name, **hub)
    processor = load_processor(name, **hub)
    return Loaded(load_model(name, config, job.dtype, job.device or _own_device(), job.device_map, **hub), processor)


def _own_device() -> str | None:
    """Each process of a launch has its own."""
    state = PartialState()
    return str(state.device) if state.num_processes > 1 else None


def _quality(
    job: EvaluationJob,
    said: Mapping[str, Predictions],
    accepted: list[list[str]],
    groups: list[Any] | None,
) -> list[Score]:
    if not said:
        return []
    return [
        scored(metric, said[MODEL], accepted, said.get(BASELINE), groups, job.seed) for metric in job.chosen_metrics
    ]


def _efficiency(job: EvaluationJob, loaded: Mapping[str, Loaded]) -> dict[str, EfficiencyReport]:
    if job.efficiency is None:
        return {}
    folders = {role: _folder(name, _hub(job, role)) for role, name in _roles(job).items()}
    asked = job.efficiency
    return measure_efficiency(loaded, asked.batch_sizes, asked.new_tokens, asked.repeats, folders=folders)


def _folder(name: str, hub: Mapping[str, Any]) -> Path:
    """Where the files of a model lie that has been loaded."""
    return Path(name) if Path(name).is_dir() else Path(cached_file(name, "config.json", **hub)).parent


def _tasks(job: EvaluationJob, role: str) -> list[TaskScore]:
    asked = job.tasks
    return run_tasks(
        str(_folder(_roles(job)[role], _hub(job, role))),
        asked.names,
        harness=asked.harness,
        harness_model=asked.harness_model,
        include_path=asked.folder,
        limit=asked.limit,
        # lmms-eval's class takes one row at a time.
        batch_size=1 if asked.harness == "lmms-eval" else job.batch_size,
        dtype=job.dtype,
        device=job.device,
        seed=job.seed,
    )


def _told(job: EvaluationJob, rows: Rows | None) -> dict[str, Any] | None:
    if rows is None:
        return None
    return {
        "name": public_name(job.dataset),
        "split": job.dataset_split,
        "rows": len(rows),
        "seed": job.seed if job.num_samples else None,
        "by": job.by,
    }
