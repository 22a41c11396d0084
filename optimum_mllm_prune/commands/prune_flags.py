"""Which flags of `optimum-cli mllm-prune` go together: what contradicts or has no effect is told, not ignored."""

from argparse import Namespace
from collections.abc import Sequence

from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance.registry import metric_of
from ..repair import repair_method
from .command_line import spelt
from .shared_checks import refuse_bad_push, refuse_idle_revision, refuse_unknown_dtype


SIZE = ("ratio", "num_layers", "target_params", "target_size", "fits", "search")
PASSES = ("num_samples", "batch_size", "gradient_checkpointing")
CALIBRATION = ("dataset", "dataset_split", *PASSES)
WIDTH_ONLY = ("head_unit", "head_share", "channel_multiple", "no_twin")
LAYER_ONLY = ("protect_layers",)
MIXED_ONLY = ("layer_share", "hidden_share")
# What the run reads and must not replace.
SOURCES = ("model", "dataset", "plan", "scores", "recover_dataset", "recover_config", "eval_dataset", "cache_dir")
PATHS = ("output", "plan", "scores", "recover_config", "cache_dir")
_DECIDED_BY_SEARCH = ("method", "steps", "num_layers", "head_share", *MIXED_ONLY, *LAYER_ONLY, "scores")
# A flag and the one that it says more of.
_BELONGS = {
    "batch": "fits",
    "context": "fits",
    "images": "fits",
    "search_rows": "search",
    "eval_split": "eval_dataset",
    "eval_by": "eval_dataset",
    "eval_efficiency": "eval_dataset",
}
# What a dry run that reads no data has no use for.
SIZES_ALONE = ("output", *CALIBRATION, "modality_weights", "seed", "overwrite")
SIZES_ALONE += ("dtype", "device", "device_map", "max_memory", "quantization")
# What a flag is when it was not given; None where not named.
DEFAULTS = {
    "method": "auto",
    "head_unit": "auto",
    "repair": "auto",
    "repair_samples": 128,
    "steps": 1,
    "layer_share": None,
    "hidden_share": 0.0,
    "no_twin": False,
    "gradient_checkpointing": False,
    "dry_run": False,
    "push_to_hub": False,
    "seed": 42,
    "dtype": "auto",
    "overwrite": False,
    "recover": "none",
    "recover_set": [],
    "search": False,
    "eval_efficiency": False,
}


def refuse_contradictions(args: Namespace) -> None:
    """Raise UserInputError where two flags exclude each other, or a value is none that is known."""
    if args.plan:
        all_flags = (
            *SIZE,
            *PASSES,
            *WIDTH_ONLY,
            *LAYER_ONLY,
            *MIXED_ONLY,
            "repair",
            "repair_samples",
            "steps",
            "importance",
            "modality_weights",
            "method",
            "scores",
            "dry_run",
            "seed",
        )
        for flag in given(args, all_flags):
            raise UserInputError(f"--plan says all that is removed: leave {flag} out.")
    if args.scores:
        for flag in given(args, (*PASSES, "seed", "steps")):
            raise UserInputError(f"--scores stands for an earlier calibration: leave {flag} out.")
    refuse_bad_push(args)
    refuse_unknown_dtype(args.dtype)
    refuse_idle_revision(args.model, args.revision, "--revision")
    for flag in ("push_to_hub", "recover", "eval_dataset"):
        if args.dry_run and given(args, [flag]):
            raise UserInputError(f"--dry-run writes no model: leave {spelt(flag)} out.")
    if args.quantization and not args.dry_run:
        raise UserInputError(
            "--quantization holds the model to be scored only: add --dry-run, and carry the plan out with --plan."
        )
    for flag in given(args, ("recover_dataset", "recover_config", "recover_set") if args.recover == "none" else ()):
        raise UserInputError(f"{flag} is only used with --recover: add it, or leave {flag} out.")
    for flag, other in _BELONGS.items():
        if given(args, [flag]) and not getattr(args, other):
            raise UserInputError(
                f"{spelt(flag)} is only used with {spelt(other)}: add it, or leave {spelt(flag)} out."
            )
    if args.recover_between is not None:
        if args.recover_between < 1:
            raise UserInputError(f"--recover-between must be at least 1, got {args.recover_between}.")
        if args.recover == "none" or args.steps < 2:
            raise UserInputError(
                "--recover-between trains between steps and goes on from there: use it with --recover and two or more "
                "--steps, or leave it out."
            )
    if args.search:
        if not args.dataset:
            raise UserInputError("--search scores plans on rows: name them with --dataset.")
        for flag in given(args, _DECIDED_BY_SEARCH):
            raise UserInputError(f"--search tries all methods after a calibration of its own: leave {flag} out.")
        if args.search_rows is not None and args.search_rows < 1:
            raise UserInputError(f"--search-rows must be at least 1, got {args.search_rows}.")


def refuse_idle_flags(args: Namespace, config: PruningConfig, sizes_only: bool) -> None:
    """Flags that would have no effect are told rather than ignored."""
    needs = metric_of(config.importance, config.method).needs
    repaired = repair_method(config) and not args.dry_run
    if not repaired and (args.plan or args.scores):
        for flag in given(args, ("dataset", "dataset_split")):
            raise UserInputError(f"nothing is scored and nothing repaired, so no row is read: leave {flag} out.")
    if args.plan:
        return
    if config.repair in ("none", "merge") and given(args, ["repair_samples"]):
        raise UserInputError(f"--repair-samples has no effect with --repair {config.repair}: leave it out.")
    reads_rows = config.repair in ("least-squares", "linear-map")
    if reads_rows and not args.dataset and (args.scores or needs == "weights"):
        raise UserInputError(f"--repair {config.repair} reads rows: name them with --dataset.")
    other = {"layer": (*WIDTH_ONLY, *MIXED_ONLY), "width": (*LAYER_ONLY, *MIXED_ONLY), "mixed": ()}
    other["hidden"] = (*WIDTH_ONLY, *LAYER_ONLY, *MIXED_ONLY)
    for flag in given(args, other[config.method]):
        raise UserInputError(f"{flag} has no effect with method '{config.method}': leave it out.")
    for flag in given(args, SIZES_ALONE if sizes_only else ()):
        raise UserInputError(
            f"--dry-run without a --dataset shows sizes alone: leave {flag} out, or name a --dataset."
        )
    by_weights = CALIBRATION if config.importance == "random" else (*CALIBRATION, "seed")
    if args.search or (repaired and args.dataset):
        # Rows are read all the same, and drawn by the seed.
        by_weights = PASSES
    forward_only = ("gradient_checkpointing",)
    idle = {"weights": by_weights, "forward": forward_only, "rows": forward_only, "backward": ()}[needs]
    looks = "looks at weights alone" if needs == "weights" else "takes no gradients"
    for flag in given(args, idle):
        raise UserInputError(f"importance '{config.importance}' {looks}: leave {flag} out.")


def modality_weights(text: str | None) -> dict[str, float] | None:
    """What `--modality-weights` says. Raises UserInputError where it is no list of KEY=NUMBER."""
    if text is None:
        return None
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    try:
        found = {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        found = {}
    if len(found) != len(pairs):
        raise UserInputError(f"--modality-weights '{text}' is not understood: write image=0.5,prompt=1,answer=2.")
    return found


def given(args: Namespace, flags: Sequence[str]) -> list[str]:
    """Those of the flags that are not at their default, as they are written."""
    return [spelt(flag) for flag in flags if getattr(args, flag) != DEFAULTS.get(flag)]
