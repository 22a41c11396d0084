"""`mllm-prune --eval-dataset`: the finished output is measured against the original."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..checkpoint.evaluated import add_evaluation, has_evaluation
from ..evaluation.evaluate import evaluate
from ..evaluation.job import EfficiencyJob, EvaluationJob
from ..evaluation.pictures import drawn
from ..evaluation.rows import rows_of
from .command_line import hub_options
from .eval_summary import evaluation_table


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
