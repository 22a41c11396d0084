"""`mllm-prune` all the way: what an earlier run of the same command has finished is not done again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..backbone import Backbone, model_class_of
from ..calibration.progress import partial_of
from ..errors import UserInputError, note_kept
from ..loading import load_config
from ..planning import PLAN_NAME, PruningPlan
from ..pruner import MLLMPruner


def goes_on(args: Namespace) -> bool:
    """Whether stages follow that work on the finished output."""
    return bool(args.eval_dataset or args.push_to_hub)


def loaded(args: Namespace, model: str, hub: dict[str, Any]) -> MLLMPruner:
    """A pruner of a model, placed as the command says."""
    where = {"device": args.device, "device_map": args.device_map, "max_memory": args.max_memory}
    where["quantization"] = args.quantization
    return MLLMPruner.from_pretrained(model, args.dtype, **where, **hub)


@contextmanager
def resumable(output: Path) -> Iterator[Path]:
    """Inside, the scores that a long calibration has found are kept in the file that it gives.

    It goes once what is done inside is done. What ends the command leaves it behind and says so; wrong input leaves
    nothing that was not there before.
    """
    file = output.with_name(f"{output.name}.calibration")
    was_there = file.is_file()
    try:
        yield file
    except UserInputError:
        if not was_there:
            file.unlink(missing_ok=True)
        raise
    except BaseException as error:
        if file.is_file():
            note_kept(error, f"what was scored is kept in '{file}': the same command goes on from there")
        raise
    for left in (file, partial_of(file)):
        left.unlink(missing_ok=True)


def staged_folder(output: Path) -> Path:
    """Where the pruned checkpoint waits for its recovery."""
    return output.with_name(output.name + ".pruned")


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
