"""Benchmarks of others: a checkpoint is handed over to a harness, and its scores are brought back."""

import json
import math
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UserInputError, is_out_of_memory
from .harnesses import HARNESSES, run, task_names


_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)\b")
_UNKNOWN = re.compile(r"Tasks not found: (.+?)(?:\. Try .*)?$")
_STDERR = re.compile(r"_stderr(_clt|_clustered)?$")


@dataclass(frozen=True)
class TaskScore:
    """One metric of one benchmark.

    Attributes:
        task: name of the benchmark, of a part of it, or of a group.
        metric: its name, with that of the harness's filter behind a comma if there is one.
        value: as the harness gives it; most are shares of 1, some percentages or sums.
        stderr: standard error of the value; None where the harness gives none.
        higher_is_better: whether a larger value is a better model; None where the harness does not say.
        n: samples it was measured on.
        version: of the benchmark's definition; None where it has none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    n: int
    version: str | None


def run_tasks(
    model: str,
    tasks: Sequence[str],
    *,
    harness: str = "lm-eval",
    harness_model: str | None = None,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    dtype: str = "auto",
    device: str | None = None,
    seed: int = 42,
) -> list[TaskScore]:
    """Run benchmarks on a checkpoint; call it on one process of a launch only.

    The harness runs in a process of its own, which reads the environment (HF_TOKEN, HF_HOME) as this one does; its
    progress bars are shown on stderr, and nothing it writes is kept. lm-eval runs in this package's tests. lmms-eval
    was not run by us: only its command line and its file of results are tested. Its class `llava_hf` takes a batch
    size of 1 alone, and counts an answer that it could not generate as an empty one.

    Args:
        model: folder or Hub id.
        tasks: names of benchmarks, groups of them, patterns or YAML files, as the harness takes them.
        harness: "lm-eval" or "lmms-eval".
        harness_model: class of the harness that loads the checkpoint; None for `hf-multimodal` of lm-eval, which takes
            any, and `llava_hf` of lmms-eval, which takes the LLaVA family.
        include_path: folder with task files of your own.
        limit: samples of each benchmark, from its beginning; None takes all.
        batch_size: samples run together.
        dtype: number format of the model; "auto" leaves it to the harness, and lm-eval takes it as saved.
        device: where it runs; None leaves it to the harness.
        seed: of all random draws.

    Returns:
        Scores of every benchmark and of its parts, in the harness's order.

    Raises:
        UserInputError: the harness is unknown or not installed, knows no such task, fails (with its last word), or
            gives no score.
        MemoryError: it ran out of memory.
    """
    check_tasks(tasks, harness, include_path, limit, batch_size)
    arguments = {"pretrained": model} | ({} if dtype == "auto" else {"dtype": dtype})
    with tempfile.TemporaryDirectory(prefix="mllm-prune-") as scratch:
        options = {
            "tasks": ",".join(tasks),
            "batch_size": batch_size,
            "seed": seed,
            "limit": limit,
            "device": device,
            "include_path": include_path,
            "output_path": scratch,
        }
        code, lines = run(HARNESSES[harness].command(harness_model, arguments, options))
        written = sorted(Path(scratch).rglob("*results*.json"))
        # lmms-eval ends with 0 even where it failed.
        if code or not written:
            _raise_on_failure(code, lines, harness, include_path)
        return task_scores(json.loads(written[-1].read_text(encoding="utf-8")))


def task_scores(found: Mapping[str, Any]) -> list[TaskScore]:
    """Scores in a file of results, as both harnesses write it.

    Raises:
        UserInputError: there is none, as of benchmarks that are scored by a server of their own.
    """
    scores = [score for task in found["results"] for score in _scores_of(found, task)]
    if not scores:
        names = ", ".join(found["results"])
        raise UserInputError(f"{names}: the harness gives no score; take a benchmark that it can score by itself.")
    return scores


def _scores_of(found: Mapping[str, Any], task: str) -> Iterator[TaskScore]:
    results = found["results"][task]
    version = found["versions"].get(task)
    for key, value in results.items():
        metric, comma, kind = key.partition(",")
        if comma and not _STDERR.search(metric) and _is_number(value):
            stderr = results.get(f"{metric}_stderr,{kind}")
            yield TaskScore(
                task=task,
                metric=metric if kind == "none" else key,
                value=float(value),
                stderr=float(stderr) if _is_number(stderr) and math.isfinite(stderr) else None,
                higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                n=_samples(found, task),
                version=None if version in (None, "N/A") else str(version),
            )


def _samples(found: Mapping[str, Any], task: str) -> int:
    """Of a group, those of its parts together."""
    if task in found["n-samples"]:
        return int(found["n-samples"][task]["effective"])
    return sum(_samples(found, part) for part in found["group_subtasks"].get(task, ()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_tasks(
    tasks: Sequence[str], harness: str, include_path: Path | None, limit: int | None, batch_size: int = 1
) -> None:
    """Raise UserInputError where arguments of `run_tasks` are wrong, as far as can be told before it runs."""
    if harness not in HARNESSES:
        raise UserInputError(f"unknown harness '{harness}': use one of {', '.join(HARNESSES)}.")
    if not tasks:
        raise UserInputError("no task is named: name at least one.")
    if include_path is not None and not include_path.is_dir():
        raise UserInputError(f"there is no folder '{include_path}' with task files: name another.")
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserInputError(f"{name} must be at least 1, got {value}.")


def _raise_on_failure(code: int, lines: Sequence[str], harness: str, include_path: Path | None) -> None:
    raised = [line for line in lines if _EXCEPTION.match(line)]
    reason = (raised or lines or [f"the process ended with {code}"])[-1]
    # Linux kills the process that asks for too much, which leaves it no last word.
    if code == -signal.SIGKILL or is_out_of_memory(reason):
        raise MemoryError(f"{harness} ran out of memory")
    unknown = _UNKNOWN.search(reason)
    if unknown:
        names = unknown[1].split(", ")
        quoted = ", ".join(map(repr, names))
        raise UserInputError(f"{harness} knows no task {quoted}: {_instead(names, harness, include_path)}.")
    raise UserInputError(f"{harness} failed ({reason.rstrip('.')}): mend that, or leave its tasks out.")


def _instead(names: Sequence[str], harness: str, include_path: Path | None) -> str:
    known = task_names(HARNESSES[harness], include_path)
    near = [match for name in names for match in get_close_matches(name, known, n=3)]
    return f"did you mean {' or '.join(dict.fromkeys(near))}" if near else "name one of its own or a folder of yours"
