"""Which plans are tried: whole layers, width, and mixtures of these and of the hidden size."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..backbone import Backbone, NotExpressibleError, Sizes
from ..configuration import AUTO, PruningConfig
from ..errors import UserInputError
from ..importance import Scores
from ..importance.registry import METRICS_OF_ERRORS
from ..planning import PruningPlan, make_plan
from ..planning.fitting import least_ratio, raised
from ..planning.width import LARGEST_STEP


# How fast heads go compared with MLP channels: as in the paper, half as fast, not at all.
_HEAD_SHARES = (1.0, 0.5, 0.0)
_ENDS = (1.0, 0.0)
# How much of a mixture is whole layers.
_LAYER_SHARES = (1 / 3, 2 / 3)
# How much of a mixture is dimensions of the residual stream: what kept most in docs/zero_shot.md.
_HIDDEN_SHARE = 1 / 4


@dataclass(frozen=True)
class Proposal:
    """A plan and what it is called."""

    name: str
    plan: PruningPlan


def proposals(
    backbone: Backbone,
    config: PruningConfig,
    scores: Scores,
    meets: Callable[[Sizes, int], bool] | None = None,
) -> tuple[list[Proposal], list[str]]:
    """Plans that meet the size that a config asks for, and for those that cannot be had the reason.

    All rest on the same scores: one calibration scores layers, heads, channels and, where `to_be_scored` asks for it,
    the residual stream. Of plans that leave the same sizes the first stays. Each has the least ratio that is enough
    for `meets`; without it, the size nearest to the config's, or the next one where that falls short of it by more
    than two points.

    Args:
        backbone: of the original model.
        config: its size counts; method and shares do not.
        scores: of the model, with metrics for both methods.
        meets: whether sizes, and the parameters that they leave, are small enough; None asks for the config's size.

    Raises:
        UserInputError: no plan can be had.
    """
    found: dict[str, Proposal] = {}
    refused = []
    for name, wish in _wishes(config, scores):
        try:
            plan = _plan(backbone, wish, scores, meets)
        except UserInputError as error:
            refused.append(f"{name}: {error}")
        else:
            found.setdefault(str(plan.sizes(backbone.without(scores.left_out))), Proposal(name, plan))
    if not found:
        raise UserInputError(f"no plan meets this size: {refused[0]}")
    return list(found.values()), refused


def to_be_scored(backbone: Backbone, config: PruningConfig) -> PruningConfig:
    """The config whose scores serve all proposals: with the residual stream's, where that can be narrowed."""
    with suppress(NotExpressibleError):
        if backbone.hidden:
            return _changed(config, method="mixed", hidden_share=_HIDDEN_SHARE)
    return config


def _plan(
    backbone: Backbone, wish: PruningConfig, scores: Scores, meets: Callable[[Sizes, int], bool] | None
) -> PruningPlan:
    """Raises UserInputError where there is none of the size that is asked for."""
    if meets is not None:
        return _small_enough(backbone, wish, scores, meets)
    plan = make_plan(backbone, wish, scores)
    least = plan.ratio["requested"] - LARGEST_STEP
    if plan.ratio["achieved"] >= least:
        return plan
    most = plan.parameters["before"] - least * plan.parameters["backbone_before"]
    return _small_enough(backbone, wish, scores, lambda _, parameters: parameters <= most)


def _small_enough(
    backbone: Backbone, wish: PruningConfig, scores: Scores, meets: Callable[[Sizes, int], bool]
) -> PruningPlan:
    whole = backbone.without(scores.left_out)
    ratio = least_ratio(whole, wish, meets)

    def plan_at(ratio: float) -> PruningPlan:
        return make_plan(backbone, _changed(wish, ratio=ratio, target_params=None), scores)

    def met(plan: PruningPlan) -> bool:
        return meets(plan.sizes(whole), plan.parameters["after"])

    plan = ratio and plan_at(ratio)
    if plan and wish.head_share == AUTO:
        plan = raised(plan, ratio, met, plan_at)
    # Layers are not all alike, and which of them go is known only now.
    if not plan or not met(plan):
        raise UserInputError("no size of it is as small as was asked for")
    return plan


def _wishes(config: PruningConfig, scores: Scores) -> Iterator[tuple[str, PruningConfig]]:
    yield "layers", _changed(config, method="layer", importance=scores.metrics["layer"], head_share=1.0)
    measured = (AUTO,) if config.importance in METRICS_OF_ERRORS else ()
    for head_share in (*measured, *_HEAD_SHARES):
        yield _width_name(head_share), _changed(config, method="width", head_share=head_share)
    for layer_share in _LAYER_SHARES:
        for head_share in (*measured, *_ENDS):
            name = f"{100 * layer_share:.0f} % layers, {_width_name(head_share)}"
            yield name, _changed(config, method="mixed", head_share=head_share, layer_share=layer_share)
    if "hidden" in scores.metrics:
        for head_share in measured or _ENDS:
            name = f"{100 * _HIDDEN_SHARE:.0f} % hidden size, {_width_name(head_share)}"
            shares = {"head_share": head_share, "layer_share": 0.0, "hidden_share": _HIDDEN_SHARE}
            yield name, _changed(config, method="mixed", **shares)


def _width_name(head_share: float | str) -> str:
    if head_share == AUTO:
        return "heads and MLP as their errors say"
    if head_share == 0:
        return "MLP"
    return "heads and MLP" if head_share == 1 else f"heads at {head_share:g} of the pace, MLP"


def _changed(config: PruningConfig, **changes: object) -> PruningConfig:
    wish = copy.copy(config)
    for key, value in changes.items():
        setattr(wish, key, value)
    return wish
