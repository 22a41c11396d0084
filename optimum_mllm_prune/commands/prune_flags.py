"""Which flags of `optimum-cli mllm-prune` go together: what contradicts or has no effect is told, not ignored."""

from argparse import Namespace
from collections.abc import Sequence

from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance import METRICS
from .command_line import spelt
from .shared_checks import refuse_bad_push, refuse_idle_revision, refuse_unknown_dtype


SIZE = ("ratio", "num_layers", "target_params")
CALIBRATION = ("dataset", "dataset_split", "num_samples", "batch_size", "gradient_checkpointing")
WIDTH_ONLY = ("head_unit", "head_share", "channel_multiple", "no_twin")
LAYER_ONLY = ("protect_layers",)
# What the run reads and must not replace.
SOURCES = ("model", "dataset", "plan", "scores", "recover_dataset", "recover_config", "cache_dir")
PATHS = ("output", "plan", "scores", "recover_config", "cache_dir")
# What a dry run that reads no data has no use for.
SIZES_ALONE = ("output", *CALIBRATION, "seed", "overwrite", "dtype", "device", "device_map")
# What a flag is when it was not given; None where not named.
DEFAULTS = {
    "method": "auto",
    "head_unit": "auto",
    "head_share": 1.0,
    "no_twin": False,
    "gradient_checkpointing": False,
    "dry_run": False,
    "push_to_hub": False,
    "seed": 42,
    "dtype": "auto",
    "overwrite": False,
    "recover": "none",
    "recover_set": [],
}


def refuse_contradictions(args: Namespace) -> None:
    """Raise UserInputError where two flags exclude each other, or a value is none that is known."""
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
        for flag in _given(args, (*CALIBRATION, "seed")):
            raise UserInputError(f"--scores stands for an earlier calibration: leave {flag} out.")
    refuse_bad_push(args)
    refuse_unknown_dtype(args.dtype)
    refuse_idle_revision(args.model, args.revision, "--revision")
    for flag in ("push_to_hub", "recover"):
        if args.dry_run and _given(args, [flag]):
            raise UserInputError(f"--dry-run writes no model: leave {spelt(flag)} out.")
    for flag in _given(args, ("recover_dataset", "recover_config", "recover_set") if args.recover == "none" else ()):
        raise UserInputError(f"{flag} is only used with --recover: add it, or leave {flag} out.")


def refuse_idle_flags(args: Namespace, config: PruningConfig, sizes_only: bool) -> None:
    """Flags that would have no effect are told rather than ignored."""
    if args.plan:
        return
    other = LAYER_ONLY if config.method == "width" else WIDTH_ONLY
    for flag in _given(args, other):
        raise UserInputError(f"{flag} has no effect with method '{config.method}': leave it out.")
    for flag in _given(args, SIZES_ALONE if sizes_only else ()):
        raise UserInputError(
            f"--dry-run without a --dataset shows sizes alone: leave {flag} out, or name a --dataset."
        )
    needs = METRICS[config.importance][config.method].needs
    by_weights = CALIBRATION if config.importance == "random" else (*CALIBRATION, "seed")
    idle = {"weights": by_weights, "forward": ("gradient_checkpointing",), "backward": ()}[needs]
    looks = "looks at weights alone" if needs == "weights" else "takes no gradients"
    for flag in _given(args, idle):
        raise UserInputError(f"importance '{config.importance}' {looks}: leave {flag} out.")


def _given(args: Namespace, flags: Sequence[str]) -> list[str]:
    """Those of the flags that are not at their default, as they are written."""
    return [spelt(flag) for flag in flags if getattr(args, flag) != DEFAULTS.get(flag)]
