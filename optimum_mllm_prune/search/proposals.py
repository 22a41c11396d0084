"""Which plans are tried: whole layers, width, and mixtures of both."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..backbone import Backbone, Sizes
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance import Scores
from ..planning import PruningPlan, make_plan


# How fast heads go compared with MLP channels: as in the paper, half as fast, not at all.
_HEAD_SHARES = (1.0, 0.5, 0.0)
# How much of a mixture is whole layers.
_LAYER_SHARES = (1 / 3, 2 / 3)


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

    All rest on the same scores: one calibration scores layers, heads and channels. Of plans that leave the same sizes
    the first stays.

    Args:
        backbone: of the original model.
        config: its size counts; method and shares do not.
        scores: of the model, with metrics for both methods.
        meets: whether sizes, and the parameters that they leave, are small enough; None takes them as they are.

    Raises:
        UserInputError: no plan can be had.
    """
    found: dict[str, Proposal] = {}
    refused = []
    for name, wish in _wishes(config, scores):
        try:
            plan = make_plan(backbone, wish, scores)
        except UserInputError as error:
            refused.append(f"{name}: {error}")
            continue
        sizes = plan.sizes(backbone.without(scores.left_out))
        if meets is not None and not meets(sizes, plan.parameters["after"]):
            refused.append(f"{name}: its nearest size is larger than what was asked for")
            continue
        found.setdefault(str(sizes), Proposal(name, plan))
    if not found:
        raise UserInputError(f"no plan meets this size: {refused[0]}")
    return list(found.values()), refused


def _wishes(config: PruningConfig, scores: Scores) -> Iterator[tuple[str, PruningConfig]]:
    yield "layers", _changed(config, method="layer", importance=scores.metrics["layer"])
    for head_share in _HEAD_SHARES:
        yield _width_name(head_share), _changed(config, method="width", head_share=head_share)
    for layer_share in _LAYER_SHARES:
        for head_share in (_HEAD_SHARES[0], _HEAD_SHARES[-1]):
            name = f"{100 * layer_share:.0f} % layers, {_width_name(head_share)}"
            yield name, _changed(config, method="mixed", head_share=head_share, layer_share=layer_share)


def _width_name(head_share: float) -> str:
    if head_share == 0:
        return "MLP"
    return "heads and MLP" if head_share == 1 else f"heads at {head_share:g} of the pace, MLP"


def _changed(config: PruningConfig, **changes: object) -> PruningConfig:
    wish = copy.copy(config)
    for key, value in changes.items():
        setattr(wish, key, value)
    return wish
