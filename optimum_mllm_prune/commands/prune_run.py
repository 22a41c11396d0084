"""What `optimum-cli mllm-prune` does: its mistakes first, then the way from model to checkpoint."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ..backbone import Backbone, model_class_of
from ..calibration.processes import launch
from ..checkpoint import atomic_folder, check_output, upload, write_plan
from ..configuration import AUTO, PruningConfig
from ..errors import note_kept
from ..importance import SCORES_NAME, Scores
from ..importance.registry import metric_of
from ..loading import check_device, load_config, public_name
from ..planning import PruningPlan, account
from ..planning.fitting import raised
from ..pruner import MLLMPruner
from .command_line import command_line, last_part
from .prune_choice import Choice, choose, guided
from .prune_flags import DEFAULTS, PATHS, SOURCES, modality_weights, refuse_contradictions, refuse_idle_flags
from .prune_launch import begin_launch, refuse_idle_processes
from .prune_rows import DrawnRows, drawn_rows
from .prune_stages import goes_on, is_made, loaded, resumable, staged_folder
from .summary import advice_text, plan_table, repair_text, report_table


if TYPE_CHECKING:
    from ..recovery.arguments import RecoveryArguments
    from .prune_between import Steps


def run(args: Namespace) -> None:
    """Carry out the command. Raises UserInputError and what the stages raise."""
    refuse_contradictions(args)
    begin_launch(args)
    plan = PruningPlan.load(args.plan) if args.plan else None
    config = PruningConfig.from_dict(plan.config) if plan else _pruning_config(args)
    scores = _scores(args)
    sizes_only = args.dry_run and not plan and not scores and _needs_unnamed_data(args, config)
    refuse_idle_flags(args, config, sizes_only)
    hub = {key: getattr(args, key) for key in ("revision", "token", "cache_dir")}
    command = command_line("mllm-prune", args, DEFAULTS, SOURCES, PATHS)
    made = not sizes_only and goes_on(args) and is_made(_output(args), command, args.model, hub)
    output = None if sizes_only else _output(args) if made else _free_output(args)
    check_device(args.device)
    model_config = load_config(args.model, **hub)
    if args.trust_remote_code:
        print(
            "--trust-remote-code: no code from the model's repository is run, since the result must load without it."
        )
    choice = Choice(config) if plan else choose(args, model_config, partial(_pruning_config, args))
    if choice.advice:
        refuse_idle_flags(args, choice.config, sizes_only)
    refuse_idle_processes(args, choice.config, sizes_only)
    if sizes_only:
        _show_sizes(model_config, choice, args)
        return
    training = _checked_stages(args, output, command, choice)
    if made:
        print(f"Made already: {output}.")
    else:
        _make(_Task(args, choice, plan, scores, output, training, command, hub))
    if not args.dry_run and launch().is_main_process:
        with _kept(output):
            _finish(args, output, command)


def _checked_stages(args: Namespace, output: Path, command: str, choice: Choice) -> "RecoveryArguments | None":
    """Raise UserInputError where what follows the pruning could not be done; how to recover, if that is asked for.

    What a stage needs is imported where it is asked for: training and evaluation take seconds to import.
    """
    if args.eval_dataset:
        from .prune_evaluate import check_evaluation

        check_evaluation(args, output, command)
    if args.recover == "none":
        return None
    from .prune_recover import training_arguments

    return training_arguments(args, output, guided(choice.advice, args))


@dataclass(frozen=True)
class _Task:
    """What is to be made: the arguments, and what has been read of what they name."""

    args: Namespace
    choice: Choice
    plan: PruningPlan | None
    scores: Scores | None
    output: Path
    training: "RecoveryArguments | None"
    command: str
    hub: dict[str, Any]


def _make(task: _Task) -> None:
    """Prune, and recover where that is asked for; of a dry run the plan alone."""
    args, output = task.args, task.output
    target = staged_folder(output) if task.training else output
    steps = _steps(task) if args.recover_between else None
    if task.training and is_made(target, task.command, args.model, task.hub):
        print(f"Pruned already, in {target}: going on with the recovery.")
    else:
        with resumable(output) as file, steps.kept() if steps else nullcontext():
            _make_pruned(task, steps, target, file)
    if task.training and not args.dry_run:
        from .prune_recover import recover_staged

        with _kept(target):
            recover_staged(args, output, task.training, task.command)
    if steps:
        steps.remove()


def _make_pruned(task: _Task, steps: "Steps | None", target: Path, resume_file: Path) -> None:
    """The pruned checkpoint, or of a dry run the plan alone."""
    args = task.args
    rows = drawn_rows(args, task.choice.config, bool(task.plan or task.scores))
    pruner, found = _pruner(task, steps, rows), None
    pruner.resume_file = resume_file
    if args.search:
        from .prune_search import searched

        found = searched(pruner, task.choice, rows)
    plan = found.best.plan if found else _plan(pruner, task, steps, rows)
    if not launch().is_main_process:
        return
    plan = replace(plan, command=task.command)
    _print_advice(task.choice, args)
    print(plan_table(pruner.earlier.told(plan) if pruner.earlier else plan))
    if args.dry_run:
        _write_plan(task.output, plan, pruner.scores)
    else:
        _prune(pruner, plan, rows.repair, target, overwrite=args.overwrite or task.training is not None)
    if found:
        found.save(task.output if args.dry_run else target)


def _steps(task: _Task) -> "Steps":
    from .prune_between import Steps

    trained = guided(task.choice.advice, task.args)
    return Steps(task.args, task.choice.config, task.output, task.command, trained, task.hub)


def _pruner(task: _Task, steps: "Steps | None", rows: DrawnRows) -> MLLMPruner:
    """Of the original; of what the steps before the last one give, where there are any."""
    if steps:
        steps.before_the_last(rows)
        return steps.pruner(task.args.steps)
    return loaded(task.args, task.args.model, task.hub)


def _plan(pruner: MLLMPruner, task: _Task, steps: "Steps | None", rows: DrawnRows) -> PruningPlan:
    if steps:
        return steps.plan(pruner, task.args.steps, rows)
    if task.plan:
        return pruner.check(task.plan, task.scores)
    choice, config = task.choice, task.choice.config
    # Between steps there are repairs, which may want more rows than the scoring.
    most = rows.repair or rows.calibration
    plan = pruner.plan(config, most if config.steps > 1 else rows.calibration, task.scores)
    backbone = pruner.backbone(config.head_unit)

    def plan_at(ratio: float) -> PruningPlan:
        config.ratio = ratio
        return pruner.plan(config, scores=pruner.scores)

    if config.head_share == AUTO and config.steps == 1 and config.ratio:
        plan = raised(plan, config.ratio, lambda one: choice.met(one, backbone), plan_at)
    choice.check(plan.sizes(backbone), plan.parameters["after"])
    return plan


def _finish(args: Namespace, output: Path, command: str) -> None:
    """What follows on the finished checkpoint."""
    if args.eval_dataset:
        from .prune_evaluate import evaluate_output

        evaluate_output(args, output, command)
    if args.push_to_hub:
        address = upload(output, args.repo_id, args.private or None, args.token, args.push_revision)
        print(f"Pushed: {address}")


def _prune(pruner: MLLMPruner, plan: PruningPlan, rows: Sequence[Any] | None, target: Path, overwrite: bool) -> None:
    check_output(target, overwrite, pruner.bytes_after(plan))
    pruner.prune(plan, rows)
    if pruner.repair:
        print(repair_text(pruner.repair))
    print("Saving, then verifying in a fresh process ...", flush=True)
    report = pruner.save_pretrained(target, overwrite, keep_model=False)
    with _kept(target):
        print(report_table(report, target))


def _free_output(args: Namespace) -> Path:
    return check_output(_output(args), args.overwrite, sources=[getattr(args, name) for name in SOURCES])


def _output(args: Namespace) -> Path:
    """What was named, or `./NAME-pruned`; the name of `.` is that of the folder it stands for."""
    return args.output or Path(f"{last_part(args.model)}-pruned")


def _scores(args: Namespace) -> Scores | None:
    """The named scores, or those beside the plan."""
    if args.scores:
        return Scores.load(args.scores)
    home = Path(args.plan or "")
    home = home if home.is_dir() else home.parent
    return Scores.load(home) if args.plan and (home / SCORES_NAME).is_file() else None


def _pruning_config(args: Namespace, **changes: Any) -> PruningConfig:
    return PruningConfig(**_config_values(args) | changes)


def _config_values(args: Namespace) -> dict[str, Any]:
    return {
        "method": args.method,
        "ratio": args.ratio,
        "num_layers": args.num_layers,
        "target_params": args.target_params,
        "importance": args.importance,
        "num_samples": args.num_samples,
        "batch_size": args.batch_size,
        "head_unit": args.head_unit,
        "head_share": args.head_share,
        "layer_share": args.layer_share,
        "hidden_share": args.hidden_share,
        "channel_multiple": args.channel_multiple,
        "allow_twin": not args.no_twin,
        "repair": args.repair,
        "repair_samples": args.repair_samples,
        "steps": args.steps,
        "protected_layers": args.protect_layers,
        "modality_weights": modality_weights(args.modality_weights),
        "gradient_checkpointing": args.gradient_checkpointing,
        "seed": args.seed,
        "dataset": public_name(args.dataset) if args.dataset else None,
        "dataset_split": args.dataset_split,
    }


def _needs_unnamed_data(args: Namespace, config: PruningConfig) -> bool:
    """Whether the metric looks at data and no data set was named: then a dry run says sizes only."""
    return args.dataset is None and metric_of(config.importance, config.method).needs != "weights"


def _print_advice(choice: Choice, args: Namespace) -> None:
    if choice.advice:
        print(advice_text(choice.advice, args.recover))


def _show_sizes(model_config: PreTrainedConfig, choice: Choice, args: Namespace) -> None:
    """Sizes from the config alone: which parts go is not known yet."""
    backbone = Backbone(model_class_of(model_config), model_config, choice.config.head_unit)
    made = account(backbone, choice.config)
    choice.check(made.sizes, made.parameters["after"])
    _print_advice(choice, args)
    print(plan_table(made))
    print("Sizes only: which parts go is decided by calibration (name a --dataset). Nothing was written.")


def _write_plan(output: Path, plan: PruningPlan, scores: Scores) -> None:
    with atomic_folder(output) as folder:
        write_plan(folder, plan, scores)
    print(f"Plan and scores are in {output}; carry the plan out with --plan {output}.")


@contextmanager
def _kept(output: Path) -> Iterator[None]:
    """What ends the command in here leaves a checkpoint behind, and says so."""
    try:
        yield
    except BaseException as error:
        note_kept(error, f"the checkpoint '{output}' is complete")
        raise
