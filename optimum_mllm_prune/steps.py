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
    for step, wish in enumerate(_wishes(backbone, config), start=1):
        here = Backbone.of(left, config.head_unit)
        wish.protected_layers = _renumbered(config.protected_layers, plan)
        scores, calibration = score(left, processor, here, wish, dataset)
        found = found or (scores, calibration)
        part = _planned(here, wish, scores, f"step {step} of {config.steps}")
        plan = part if plan is None else composed(plan, part, backbone)
        plan = worked_out(replace(plan, config=config.to_dict()), backbone, part.notes)
        if step < config.steps:
            del left
            left = _carried_out(model, processor, backbone, plan, dataset)
    notes = [*plan.notes, f"chosen in {config.steps} steps, each scored on what the last one left"]
    requested = round(budget_of(backbone, config).ratio, 6)
    return replace(plan, notes=notes, ratio={**plan.ratio, "requested": requested}), *found


def _wishes(backbone: Backbone, config: PruningConfig) -> Iterator[PruningConfig]:
    """What each step is to reach. Raises UserInputError where there are more steps than layers to remove."""
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


def _renumbered(layers: Sequence[int] | None, plan: PruningPlan | None) -> list[int] | None:
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
