"""`mllm-prune --steps --recover-between`: every step is pruned, trained a little, and a checkpoint of its own.

The checkpoints wait beside the output, and the same command goes on from the last of them that is complete.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..backbone import Backbone, model_class_of
from ..configuration import PruningConfig
from ..earlier import Earlier
from ..errors import note_kept
from ..loading import load_config
from ..planning import PruningPlan
from ..pruner import MLLMPruner
from ..steps import renumbered, told_as_one, wishes
from .prune_recover import recover_staged, training_arguments
from .prune_rows import DrawnRows
from .prune_stages import is_made, loaded, staged_folder
from .summary import plan_table, repair_text


class Steps:
    """The steps of one command.

    Args:
        args: the command's.
        config: what is wanted in the end, and in how many steps.
        output: folder of the result.
        command: the command line.
        guided: what the decision guide says of the training.
        hub: `revision`, `token`, `cache_dir` of the original.
    """

    def __init__(
        self,
        args: Namespace,
        config: PruningConfig,
        output: Path,
        command: str,
        guided: Mapping[str, Any],
        hub: Mapping[str, Any],
    ) -> None:
        self.args, self.config, self.output, self.command = args, config, output, command
        self.guided, self.hub = guided, hub
        model_config = load_config(args.model, **hub)
        self.backbone = Backbone(model_class_of(model_config), model_config, config.head_unit)
        self.wishes = list(wishes(self.backbone, config))

    def before_the_last(self, rows: DrawnRows) -> None:
        """Make the checkpoints of all steps but the last that are not there yet.

        Raises:
            UserInputError: a step would remove nothing, or as the stages do.
        """
        for step in range(1, len(self.wishes)):
            if is_made(self._folder(step), self.command, self.args.model, self.hub):
                print(f"Step {step} of {len(self.wishes)} is there already: {self._folder(step)}.")
                continue
            self._make(step, rows)

    def pruner(self, step: int) -> MLLMPruner:
        """Of what is pruned in a step: the original, or what the step before it gave."""
        if step == 1:
            return loaded(self.args, self.args.model, self.hub)
        before = self._folder(step - 1)
        pruner = loaded(self.args, str(before), {})
        pruner.earlier = Earlier(self.backbone, partial(self._told, PruningPlan.load(before), step))
        return pruner

    def plan(self, pruner: MLLMPruner, step: int, rows: DrawnRows) -> PruningPlan:
        """What a step removes, in the numbers of what it is given."""
        wish, before = self.wishes[step - 1], None if step == 1 else PruningPlan.load(self._folder(step - 1))
        wish.steps, wish.protected_layers = 1, renumbered(self.config.protected_layers, before)
        return replace(pruner.plan(wish, rows.calibration), command=self.command)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What ends the command in here leaves the checkpoints of finished steps behind, and says so."""
        try:
            yield
        except BaseException as error:
            standing = [self._folder(step) for step in range(1, len(self.wishes)) if self._folder(step).is_dir()]
            if standing:
                note_kept(error, f"'{standing[-1]}' is kept: the same command goes on from there")
            raise

    def remove(self) -> None:
        """Remove the checkpoints of the steps, once the output stands."""
        for step in range(1, self.config.steps):
            shutil.rmtree(self._folder(step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.output.with_name(f"{self.output.name}.step{step}")

    def _make(self, step: int, rows: DrawnRows) -> None:
        target = staged_folder(self._folder(step))
        print(f"Step {step} of {len(self.wishes)}", flush=True)
        if not is_made(target, self.command, self.args.model, self.hub):
            pruner = self.pruner(step)
            plan = self.plan(pruner, step, rows)
            print(plan_table(pruner.earlier.told(plan) if pruner.earlier else plan))
            pruner.prune(plan, rows.repair)
            if pruner.repair:
                print(repair_text(pruner.repair))
            pruner.save_pretrained(target, overwrite=True, keep_model=False)
        short = training_arguments(self.args, self._folder(step), self.guided, max_steps=self.args.recover_between)
        recover_staged(self.args, self._folder(step), short, self.command)

    def _told(self, first: PruningPlan, step: int, then: PruningPlan) -> PruningPlan:
        plan = told_as_one(first, then, self.backbone, self.config)
        between = f"pruned in {step} steps, each trained for {self.args.recover_between} optimiser steps but the last"
        return replace(plan, notes=[*plan.notes, between], model=first.model, scores=None)
