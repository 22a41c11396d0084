"""What `optimum-cli mllm-eval` does: its mistakes first, then from checkpoint to report."""

from argparse import Namespace
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from ..calibration.processes import launch
from ..checkpoint import atomic_folder, check_output
from ..checkpoint.evaluated import add_evaluation
from ..evaluation.evaluate import evaluate
from ..evaluation.job import EfficiencyJob, EvaluationJob, TasksJob
from ..evaluation.pictures import draw, drawn
from ..evaluation.report import EvaluationReport
from ..loading import check_device
from .command_line import command_line, hub_options, last_part
from .eval_flags import DEFAULTS, PATHS, SOURCES, refuse_contradictions
from .eval_summary import evaluation_table


def run(args: Namespace) -> None:
    """Carry out the command. Raises UserInputError and what the stages raise."""
    refuse_contradictions(args)
    check_device(args.device)
    job = _job(args)
    output = args.output or Path(f"{last_part(args.model)}-evaluation")
    output = check_output(output, args.overwrite, sources=[getattr(args, name) for name in SOURCES])
    first = launch(cpu=args.device == "cpu").is_main_process
    if not first:
        disable_progress_bar()
    report = evaluate(job)
    if not first:
        return
    with atomic_folder(output) as folder:
        report.save(folder)
        draw(report, folder)
    print(evaluation_table(report))
    print(f"Report and pictures: {output}")
    if args.update_card:
        _update_card(Path(args.model), report)


def _update_card(folder: Path, report: EvaluationReport) -> None:
    with drawn(report) as pictures:
        add_evaluation(folder, report.to_dict(), pictures)
    print(f"Card updated: {folder / 'README.md'}")


def _job(args: Namespace) -> EvaluationJob:
    return EvaluationJob(
        model=args.model,
        baseline=args.baseline,
        dataset=args.dataset,
        dataset_split=args.dataset_split,
        num_samples=args.num_samples,
        seed=args.seed,
        metrics=tuple(args.metrics or ()),
        by=args.by,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        efficiency=_efficiency(args) if args.efficiency else None,
        tasks=_tasks(args) if args.tasks else None,
        dtype=args.dtype,
        device=args.device,
        device_map=args.device_map,
        command=command_line("mllm-eval", args, DEFAULTS, SOURCES, PATHS),
        hub=hub_options(args, "revision", "token", "cache_dir"),
        baseline_revision=args.baseline_revision,
    )


def _efficiency(args: Namespace) -> EfficiencyJob:
    given = {
        "batch_sizes": args.efficiency_batch_sizes and tuple(args.efficiency_batch_sizes),
        "new_tokens": args.efficiency_tokens,
        "repeats": args.efficiency_repeats,
    }
    return EfficiencyJob(**{name: value for name, value in given.items() if value is not None})


def _tasks(args: Namespace) -> TasksJob:
    names = tuple(name.strip() for name in args.tasks.split(",") if name.strip())
    return TasksJob(names, args.harness, args.harness_model, args.tasks_folder, args.limit)
