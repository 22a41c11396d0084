"""`mllm-prune` all the way: what an earlier run of the same command has finished is not done again."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from ..backbone import Backbone, model_class_of
from ..checkpoint.evaluated import add_evaluation, has_evaluation
from ..evaluation.evaluate import evaluate
from ..evaluation.job import EfficiencyJob, EvaluationJob
from ..evaluation.pictures import drawn
from ..evaluation.rows import rows_of
from ..loading import load_config
from ..planning import PLAN_NAME, PruningPlan
from .command_line import hub_options
from .summary import evaluation_table


def goes_on(args: Namespace) -> bool:
    """Whether stages follow that work on the finished output."""
    return bool(args.eval_dataset or args.push_to_hub)


def is_made(folder: Path, command: str, model: str, hub: dict[str, Any]) -> bool:
    """Whether a folder holds what this command makes of this model; a checkpoint appears whole or not at all.

    Commands tell of local paths their last part alone, so the architecture is compared as well. What was to be
    overwritten is made anew. Raises UserInputError as `load_config` does.
    """
    if "--overwrite" in command.split() or not (folder / PLAN_NAME).is_file():
        return False
    plan = PruningPlan.load(folder)
    if plan.command != command:
        return False
    config = load_config(model, **hub)
    return plan.model["fingerprint"] == Backbone(model_class_of(config), config).fingerprint


def check_evaluation(args: Namespace, output: Path, command: str) -> None:
    """Read the rows to evaluate on before anything is pruned. Raises UserInputError where they cannot be used."""
    if args.eval_dataset:
        rows_of(_job(args, output, command))


def evaluate_output(args: Namespace, output: Path, command: str) -> None:
    """Measure the output against the original and write what was found into its card; once."""
    if has_evaluation(output, command):
        print(f"Evaluated already: {output / 'evaluation.json'}.")
        return
    report = evaluate(_job(args, output, command))
    with drawn(report) as pictures:
        add_evaluation(output, report.to_dict(), pictures)
    print(evaluation_table(report))


def _job(args: Namespace, output: Path, command: str) -> EvaluationJob:
    return EvaluationJob(
        model=str(output),
        baseline=args.model,
        dataset=args.eval_dataset,
        dataset_split=args.eval_split,
        seed=args.seed,
        by=args.eval_by,
        efficiency=EfficiencyJob() if args.eval_efficiency else None,
        dtype=args.dtype,
        device=args.device,
        device_map=args.device_map,
        command=command,
        hub=hub_options(args, "token", "cache_dir"),
        baseline_revision=args.revision,
    )
