"""Checks of flags that several commands share."""

from argparse import Namespace
from pathlib import Path

from ..checkpoint import check_repo_id
from ..errors import UserInputError


DTYPES = ("auto", "float32", "bfloat16", "float16")


def refuse_bad_push(args: Namespace) -> None:
    """Raise UserInputError where the flags of a push do not go together."""
    if args.push_to_hub and not args.repo_id:
        raise UserInputError("--push-to-hub needs --repo-id, the repository to push to (me/my-model).")
    if args.push_to_hub:
        check_repo_id(args.repo_id)
    for flag in ("repo_id", "private", "push_revision"):
        if getattr(args, flag) and not args.push_to_hub:
            name = flag.replace("_", "-")
            raise UserInputError(f"--{name} is only used with --push-to-hub: add it, or leave --{name} out.")


def refuse_unknown_dtype(dtype: str) -> None:
    """Raise UserInputError where a number format is none that is known."""
    if dtype not in DTYPES:
        raise UserInputError(f"unknown dtype '{dtype}': use one of {', '.join(DTYPES)}.")


def refuse_idle_revision(model: str | None, revision: str | None, flag: str) -> None:
    """Raise UserInputError where a revision is named of a local folder."""
    if revision and model and Path(model).is_dir():
        raise UserInputError(f"{flag} has no effect on a local folder: leave it out.")
