"""What `optimum-cli mllm-prune` does: its mistakes first, then the way from model to checkpoint."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..backbone import Backbone, model_class_of
from ..calibration.rows import load_rows
from ..checkpoint import atomic_folder, check_output, upload
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance import METRICS, Scores
from ..loading import load_config, public_name
from ..planning import PruningPlan, account
from ..pruner import MLLMPruner
from .summary import plan_table, report_table


SIZE = ("ratio", "num_layers", "target_params")
CALIBRATION = ("dataset", "dataset_split", "num_samples", "batch_size", "gradient_checkpointing")
WIDTH_ONLY = ("head_unit", "head_share", "channel_multiple", "no_twin")
LAYER_ONLY = ("protect_layers",)
# What a flag is when it was not given; None where not named.
DEFAULTS = {
    "method": "auto",
    "head_unit": "auto",
    "head_share": 1.0,
    "no_twin": False,
    "gradient_checkpointing": False,
    "dry_run": False,
    "seed": 42,
}
DEFAULT_DATASET = "HuggingFaceH4/llava-instruct-mix-vsft"


def run(args: Namespace) -> None:
    """Carry out the command. Raises UserInputError and what the stages raise."""
    _refuse_contradictions(args)
    output = check_output(args.output or _default_output(args.model), args.overwrite)
    hub = _hub_options(args)
    plan = PruningPlan.load(args.plan) if args.plan else None
    config = PruningConfig.from_dict(plan.config) if plan else _pruning_config(args)
    scores = Scores.load(args.scores) if args.scores else None
    _refuse_idle_flags(args, config)
    model_config = load_config(args.model, **hub)
    if args.dry_run and not plan and not scores and _needs_unnamed_data(args, config):
        _show_sizes(model_config, config)
        return
    rows = None if plan or scores else _calibration_rows(args, config)
    pruner = MLLMPruner.from_pretrained(args.model, args.dtype, args.device, args.device_map, **hub)
    plan = pruner.check(plan) if plan else pruner.plan(config, rows, scores)
    plan = replace(plan, command=_command())
    print(plan_table(plan))
    if args.dry_run:
        _write_plan(output, plan, pruner.scores)
        return
    pruner.prune(plan)
    print("Saving, then verifying in a fresh process ...", flush=True)
    report = pruner.save_pretrained(output, args.overwrite, keep_model=False)
    print(report_table(report, output))
    if args.push_to_hub:
        print(f"Pushed: {upload(output, args.repo_id, args.private or None, args.token)}")


def _refuse_contradictions(args: Namespace) -> None:
    if args.plan:
        all_flags = (
            *SIZE,
            *CALIBRATION,
            *WIDTH_ONLY,
            *LAYER_ONLY,
            "importance",
            "method",
            "scores",
            "dry_run",
            "seed",
        )
        for flag in _given(args, all_flags):
            raise UserInputError(f"--plan says all that is removed: leave {flag} out.")
    if args.scores:
        for flag in _given(args, CALIBRATION):
            raise UserInputError(f"--scores stands for an earlier calibration: leave {flag} out.")
    if args.push_to_hub and not args.repo_id:
        raise UserInputError("--push-to-hub needs --repo-id, the repository to push to (me/my-model).")
    for flag in ("repo_id", "private"):
        if getattr(args, flag) and not args.push_to_hub:
            name = flag.replace("_", "-")
            raise UserInputError(f"--{name} is only used with --push-to-hub: add it, or leave --{name} out.")
    if args.push_to_hub and args.dry_run:
        raise UserInputError("--dry-run writes no model: leave --push-to-hub out.")
    if args.dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserInputError(f"unknown dtype '{args.dtype}': use one of auto, float32, bfloat16, float16.")


def _default_output(model: str) -> Path:
    """`./NAME-pruned`; the name of `.` is that of the folder it stands for."""
    return Path(f"{Path(os.path.abspath(model)).name}-pruned")


def _refuse_idle_flags(args: Namespace, config: PruningConfig) -> None:
    """Flags that would have no effect are told rather than ignored."""
    if args.plan:
        return
    other = LAYER_ONLY if config.method == "width" else WIDTH_ONLY
    for flag in _given(args, other):
        raise UserInputError(f"{flag} has no effect with method '{config.method}': leave it out.")
    needs = METRICS[config.importance][config.method].needs
    idle = {"weights": CALIBRATION, "forward": ("gradient_checkpointing",), "backward": ()}[needs]
    looks = "looks at weights alone" if needs == "weights" else "takes no gradients"
    for flag in _given(args, idle):
        raise UserInputError(f"importance '{config.importance}' {looks}: leave {flag} out.")


def _given(args: Namespace, flags: Sequence[str]) -> list[str]:
    """Those of the flags that are not at their default, as they are written."""
    return [f"--{flag.replace('_', '-')}" for flag in flags if getattr(args, flag) != DEFAULTS.get(flag)]


def _hub_options(args: Namespace) -> dict[str, Any]:
    options = {key: getattr(args, key) for key in ("revision", "token", "cache_dir")}
    given = {key: value for key, value in options.items() if value is not None}
    return given | ({"trust_remote_code": True} if args.trust_remote_code else {})


def _pruning_config(args: Namespace) -> PruningConfig:
    return PruningConfig(
        method=args.method,
        ratio=args.ratio,
        num_layers=args.num_layers,
        target_params=args.target_params,
        importance=args.importance,
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        head_unit=args.head_unit,
        head_share=args.head_share,
        channel_multiple=args.channel_multiple,
        allow_twin=not args.no_twin,
        protected_layers=args.protect_layers,
        gradient_checkpointing=args.gradient_checkpointing,
        seed=args.seed,
        dataset=public_name(args.dataset) if args.dataset else None,
        dataset_split=args.dataset_split,
    )


def _needs_unnamed_data(args: Namespace, config: PruningConfig) -> bool:
    """Whether the metric looks at data and no data set was named: then a dry run says sizes only."""
    return args.dataset is None and METRICS[config.importance][config.method].needs != "weights"


def _calibration_rows(args: Namespace, config: PruningConfig) -> Sequence[Any] | None:
    """The rows, read before any weight is loaded; None where weights alone decide."""
    metric = METRICS[config.importance][config.method]
    if metric.needs == "weights":
        return None
    options = {key: value for key, value in (("token", args.token), ("cache_dir", args.cache_dir)) if value}
    count = config.num_samples or metric.samples
    if args.dataset:
        return load_rows(args.dataset, args.dataset_split, count, config.seed, **options)
    try:
        rows = load_rows(DEFAULT_DATASET, args.dataset_split, count, config.seed, **options)
    except UserInputError as error:
        raise UserInputError(
            f"no calibration data: the default set '{DEFAULT_DATASET}' cannot be fetched; name your own with "
            "--dataset, or prune without data with --importance magnitude_l2."
        ) from error
    config.dataset = DEFAULT_DATASET
    return rows


def _show_sizes(model_config: PreTrainedConfig, config: PruningConfig) -> None:
    """Sizes from the config alone: which parts go is not known yet."""
    backbone = Backbone(model_class_of(model_config), model_config, config.head_unit)
    made = account(backbone, config)
    print(plan_table(made))
    print("Sizes only: which parts go is decided by calibration (name a --dataset). Nothing was written.")


def _write_plan(output: Path, plan: PruningPlan, scores: Scores) -> None:
    with atomic_folder(output) as folder:
        plan.save(folder)
        scores.save(folder)
        PruningConfig.from_dict(plan.config).save_pretrained(folder)
    print(f"Plan and scores are in {output}; carry the plan out with --plan {output}.")


def _command() -> str:
    """The command line as it may be written down: no token, of local paths only the last part."""
    words, hidden = [], False
    for word in sys.argv[1:]:
        if hidden or word.startswith("--token="):
            hidden = False
        elif word == "--token":
            hidden = True
        else:
            flag, equals, value = word.partition("=")
            words.append(f"{flag}={public_name(value)}" if equals else public_name(word))
    return shlex.join(["optimum-cli", *words])
