"""A plan made in several steps: each is scored on what the steps before it have left, repaired."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from .backbone import Backbone, refuse_offloaded
from .configuration import PruningConfig
from .errors import UserInputError
from .importance import Scores
from .importance.scoring import score
from .planning import PruningPlan, account, make_plan
from .planning.budget import budget_of
from .planning.composed import composed
from .planning.planner import worked_out
from .repair import repair, rows_to_repair
from .surgery import pruned_model


def stepwise_plan(
    model: PreTrainedModel,
    processor: ProcessorMixin | None,
    backbone: Backbone,
    config: PruningConfig,
    dataset: Any,
    known: Scores | None = None,
) -> tuple[PruningPlan, Scores, dict[str, Any] | None]:
    """Remove a part at a time, on the side: what one step has cut and repaired, the next one scores anew.

    What was important in the whole model may not be in a half of it. Only the choice is made step by step: the plan
    is carried out, and repaired, at once.

    Args:
        model: the original; not changed.
        processor: reads the rows.
        backbone: of `model`.
        config: what is wanted in the end, and in how many steps.
        dataset: rows to score on, and to repair on where the config asks for that.
        known: scores of an earlier calibration, which would be those of the first step alone: refused.

    Returns:
        The plan in the numbers of the original, the scores of the first step, and what is reported of its calibration.

    Raises:
        UserInputError: a step would remove nothing, weights are offloaded, or as in scoring and planning.
    """
    refuse_offloaded(model, "pruning in steps")
    if known is not None:
        raise UserInputError("every step is scored anew: leave the scores out, or take one step.")
    plan, left, found = None, model, None
    for step, wish in enumerate(wishes(backbone, config), start=1):
        here = Backbone.of(left, config.head_unit)
        wish.protected_layers = renumbered(config.protected_layers, plan)
        scores, calibration = score(left, processor, here, wish, dataset)
        found = found or (scores, calibration)
        part = _planned(here, wish, scores, f"step {step} of {config.steps}")
        plan = told_as_one(plan, part, backbone, config)
        if step < config.steps:
            del left
            left = _carried_out(model, processor, backbone, plan, dataset)
    notes = [*plan.notes, f"chosen in {config.steps} steps, each scored on what the last one left"]
    return replace(plan, notes=notes), *found


def told_as_one(
    first: PruningPlan | None, then: PruningPlan, backbone: Backbone, config: PruningConfig
) -> PruningPlan:
    """What is gone after `first`, if there was one, and `then`: in the numbers of the original, with its figures.

    Args:
        first: made for the original.
        then: made for what `first` leaves.
        backbone: of the original.
        config: what is wanted in the end.
    """
    plan = then if first is None else composed(first, then, backbone)
    wanted = {"requested": round(budget_of(backbone, config).ratio, 6)}
    return worked_out(replace(plan, config=config.to_dict(), ratio=wanted), backbone, then.notes)


def wishes(backbone: Backbone, config: PruningConfig) -> Iterator[PruningConfig]:
    """What each step is to reach, of what the one before it left.

    Raises:
        UserInputError: there are more steps than layers to remove.
    """
    if config.method == "layer":
        count = backbone.num_layers - len(account(backbone, config).sizes.kept_layers)
        if config.steps > count:
            raise UserInputError(f"steps {config.steps} are more than the {count} layers that are to go: take fewer.")
        ends = [round(count * step / config.steps) for step in range(config.steps + 1)]
        yield from (_changed(config, num_layers=end - begin) for begin, end in pairwise(ends))
        return
    budget = budget_of(backbone, config)
    for step in range(1, config.steps + 1):
        yield _changed(config, target_params=round(backbone.parameters - budget.remove * step / config.steps))


def _changed(config: PruningConfig, **size: int) -> PruningConfig:
    wish = copy.copy(config)
    wish.ratio, wish.num_layers, wish.target_params = None, size.get("num_layers"), size.get("target_params")
    return wish


def renumbered(layers: Sequence[int] | None, plan: PruningPlan | None) -> list[int] | None:
    """Numbers of layers in what a plan leaves, of those of the original; all must be there."""
    return layers and ([plan.kept_layers.index(layer) for layer in layers] if plan else list(layers))


def _planned(backbone: Backbone, wish: PruningConfig, scores: Scores, step: str) -> PruningPlan:
    try:
        return make_plan(backbone, wish, scores)
    except UserInputError as error:
        raise UserInputError(f"{step}: {error}") from error


def _carried_out(
    model: PreTrainedModel, processor: ProcessorMixin | None, backbone: Backbone, plan: PruningPlan, dataset: Any
) -> PreTrainedModel:
    made = pruned_model(model, backbone, plan, keep_original=True)
    rows = rows_to_repair(plan, processor, dataset)
    if rows is not None:
        repair(model, made, backbone, plan, processor, rows)
    return made
