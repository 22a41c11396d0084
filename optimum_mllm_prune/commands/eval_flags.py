"""Which flags of `optimum-cli mllm-eval` go together: what contradicts or has no effect is told, not ignored."""

from argparse import Namespace
from pathlib import Path

from ..errors import UserInputError
from .command_line import spelt
from .shared_checks import refuse_idle_revision, refuse_unknown_dtype


# What the run reads and must not replace.
SOURCES = ("model", "baseline", "dataset", "tasks_folder", "cache_dir")
PATHS = ("output", "tasks_folder", "cache_dir")
# What a flag is when it was not given; None where not named.
DEFAULTS = {"dtype": "auto", "harness": "lm-eval", "seed": 42, "batch_size": 16, "max_new_tokens": 48}

# A flag and what it says more of.
_BELONGS = {
    "dataset_split": "dataset",
    "num_samples": "dataset",
    "metrics": "dataset",
    "by": "dataset",
    "efficiency_batch_sizes": "efficiency",
    "efficiency_tokens": "efficiency",
    "efficiency_repeats": "efficiency",
    "tasks_folder": "tasks",
    "harness_model": "tasks",
    "limit": "tasks",
    "baseline_revision": "baseline",
}


def refuse_contradictions(args: Namespace) -> None:
    """Raise UserInputError where two flags exclude each other, or one would have no effect."""
    refuse_unknown_dtype(args.dtype)
    refuse_idle_revision(args.model, args.revision, "--revision")
    refuse_idle_revision(args.baseline, args.baseline_revision, "--baseline-revision")
    for flag, other in _BELONGS.items():
        if getattr(args, flag) is not None and not getattr(args, other):
            raise UserInputError(
                f"{spelt(flag)} is only used with {spelt(other)}: add it, or leave {spelt(flag)} out."
            )
    if args.harness != DEFAULTS["harness"] and not args.tasks:
        raise UserInputError("--harness is only used with --tasks: add it, or leave --harness out.")
    if not (args.dataset or args.efficiency or args.tasks):
        raise UserInputError("nothing is to be measured: add --dataset, --efficiency or --tasks.")
    if args.update_card and not Path(args.model).is_dir():
        raise UserInputError("--update-card writes into a local folder, and --model is none: fetch the model first.")
