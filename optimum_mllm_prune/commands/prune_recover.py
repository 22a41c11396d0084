"""`mllm-prune --recover`: both steps in one go. The pruned checkpoint waits beside the output."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserInputError
from ..recovery.arguments import RecoveryArguments
from ..recovery.job import RecoveryJob
from ..recovery.recover import recover
from ..recovery.settings import recovery_arguments
from ..recovery.training_folder import TrainingFolder
from .command_line import hub_options
from .prune_stages import staged_folder
from .summary import recovery_table


def training_arguments(
    args: Namespace, output: Path, guided: Mapping[str, Any], max_steps: int | None = None
) -> RecoveryArguments:
    """How to recover. Raises UserInputError, so it is asked for before anything is pruned.

    Args:
        args: the command's.
        output: the folder of the result.
        guided: what the decision guide says of it.
        max_steps: optimiser steps, instead of what was asked for.
    """
    given = {"train": args.recover, "seed": args.seed, "use_cpu": True if args.device == "cpu" else None, **guided}
    given |= {} if max_steps is None else {"max_steps": max_steps}
    made = recovery_arguments(TrainingFolder(output).path, args.recover_config, args.recover_set, given)
    if not (args.recover_dataset or args.dataset):
        raise UserInputError("--recover needs rows to train on: name them with --dataset or --recover-dataset.")
    return made


def recover_staged(args: Namespace, output: Path, arguments: RecoveryArguments, command: str) -> None:
    """Train the pruned checkpoint into the output, and remove it once that stands."""
    taught = arguments.recipe().needs_teacher
    record = recover(
        RecoveryJob(
            model=str(staged_folder(output)),
            output=output,
            dataset=args.recover_dataset or args.dataset,
            teacher=args.model if taught else None,
            dataset_split=None if args.recover_dataset else args.dataset_split,
            dtype=args.dtype,
            device_map=args.device_map,
            overwrite=args.overwrite,
            command=command,
            hub=hub_options(args, "token", "cache_dir"),
            teacher_revision=args.revision if taught else None,
        ),
        arguments,
    )
    shutil.rmtree(staged_folder(output))
    print(recovery_table(record, output))
