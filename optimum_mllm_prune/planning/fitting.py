"""The least ratio whose result is small enough: of a size of its weights, or of the memory that it runs in."""

import copy
from bisect import bisect_left
from collections.abc import Callable

import torch

from ..backbone import Backbone, Sizes
from ..configuration import PruningConfig
from ..errors import UserInputError
from .byte_sizes import in_gigabytes
from .footprint import Footprint, Load, footprint, weight_bytes
from .plan import PruningPlan
from .planner import Account, account


# Ratios are searched in thousandths of the backbone.
_STEPS = 1000
_COARSE = 25
# By so much a ratio is raised that turns out too small.
_MORE = 0.005


def raised(
    plan: PruningPlan, ratio: float, met: Callable[[PruningPlan], bool], plan_at: Callable[[float], PruningPlan]
) -> PruningPlan:
    """A plan whose split between heads and MLP follows errors, and whose ratio was found for an even one: raised until
    the plan is small enough; the last one where none is.

    Args:
        plan: made for `ratio`.
        ratio: share of the backbone.
        met: whether a plan is small enough.
        plan_at: the plan for a ratio.
    """
    while not met(plan) and ratio + _MORE < 1:
        ratio = round(ratio + _MORE, 6)
        plan = plan_at(ratio)
    return plan


def ratio_for_bytes(backbone: Backbone, config: PruningConfig, size: int, dtype: torch.dtype) -> float:
    """The least ratio at which the weights of the whole model take at most `size` bytes.

    Args:
        backbone: of the original model.
        config: how it is to be pruned; its own size is not looked at.
        size: bytes.
        dtype: number format of the weights.

    Raises:
        UserInputError: the weights are that small already, cannot become so, or the model cannot be pruned so.
    """
    now = weight_bytes(backbone.parameters, dtype)
    if now <= size:
        raise UserInputError(
            f"the weights take {in_gigabytes(now)} and {in_gigabytes(size)} are allowed: there is nothing to prune, "
            "give a smaller size."
        )

    def weights(made: Account) -> int:
        return weight_bytes(made.parameters["after"], dtype)

    found, largest = _least_ratio(backbone, config, lambda made: weights(made) <= size)
    if found is None:
        raise UserInputError(
            f"{in_gigabytes(size)} are out of reach by method '{config.method}': at ratio "
            f"{largest.ratio['achieved']:.3f}, its largest, the weights still take {in_gigabytes(weights(largest))}; "
            f"{_or(['allow more', *_smaller_numbers(dtype)])}."
        )
    return found


def ratio_that_fits(backbone: Backbone, config: PruningConfig, available: int, load: Load) -> float:
    """The least ratio at which the model runs in `available` bytes: weights, cache and activations.

    Of method "layer" the last layers stand for those that will go: where layers differ, look at the plan again
    (`footprint` of its sizes).

    Args:
        backbone: of the original model.
        config: how it is to be pruned; its own size is not looked at.
        available: bytes.
        load: what the model is to do.

    Raises:
        UserInputError: it fits already, cannot be made to fit, or cannot be pruned so.
    """
    now = footprint(backbone, load)
    if now.total <= available:
        raise UserInputError(
            f"the model as it is takes {_in_words(now)} and {in_gigabytes(available)} are there: it fits, there is "
            "nothing to prune."
        )

    def fits(made: Account) -> bool:
        # Most are decided by the weights alone, for which nothing has to run.
        light = weight_bytes(made.parameters["after"], load.dtype) <= available
        return light and footprint(backbone, load, made.sizes).total <= available

    found, largest = _least_ratio(backbone, config, fits)
    if found is None:
        least = footprint(backbone, load, largest.sizes)
        raise UserInputError(
            f"{in_gigabytes(available)} are out of reach by method '{config.method}': at ratio "
            f"{largest.ratio['achieved']:.3f}, its largest, the model still takes {_in_words(least)}; "
            f"{_or(_what_would_help(least, available, load))}."
        )
    return found


def least_ratio(backbone: Backbone, config: PruningConfig, meets: Callable[[Sizes, int], bool]) -> float | None:
    """The least ratio whose sizes, and the parameters that they leave, are small enough; None where there is none.

    Args:
        backbone: of the original model.
        config: how it is to be pruned; its own size is not looked at.
        meets: says of sizes and parameters whether they are small enough.

    Raises:
        UserInputError: the model cannot be pruned so.
    """
    return _least_ratio(backbone, config, lambda made: meets(made.sizes, made.parameters["after"]))[0]


def _least_ratio(
    backbone: Backbone, config: PruningConfig, enough: Callable[[Account], bool]
) -> tuple[float | None, Account]:
    """The least ratio with `enough` (None where there is none), and the account of the largest that is possible.

    By halving: where whole heads make sizes go up and down a little, a somewhat smaller one might do as well.
    """
    if config.method == "width":
        backbone.width_groups()

    def made(step: int) -> Account:
        wish = copy.copy(config)
        wish.ratio, wish.num_layers, wish.target_params = step / _STEPS, None, None
        return account(backbone, wish)

    def reached(step: int) -> bool:
        try:
            return enough(made(step))
        except UserInputError:
            return False

    top, largest = _largest(made)
    if not enough(largest):
        return None, largest
    least = bisect_left(range(1, top), True, key=reached) + 1
    # Whole layers are asked for by what they make up, not by the edge where they begin to be the nearest number.
    return made(least).ratio["achieved"] if config.method == "layer" else least / _STEPS, largest


def _largest(made: Callable[[int], Account]) -> tuple[int, Account]:
    """The largest ratio that is possible, in steps: coarsely from above, then finely between two coarse ones."""

    def impossible(step: int) -> bool:
        try:
            made(step)
        except UserInputError:
            return True
        return False

    coarse = next((step for step in range(_STEPS - _COARSE, 0, -_COARSE) if not impossible(step)), _COARSE)
    top = coarse + bisect_left(range(coarse + 1, coarse + _COARSE), True, key=impossible)
    return top, made(top)


def _what_would_help(least: Footprint, available: int, load: Load) -> list[str]:
    """Other loads that take less; where the weights alone are too much, no other load would do."""
    if least.weights > available:
        return ["allow more", *_smaller_numbers(load.dtype)]
    fewer = [f"fewer {what}" for what, number in (("rows", load.batch), ("images", load.images)) if number > 1]
    return ["take a shorter context", *fewer, *_smaller_numbers(load.dtype)]


def _smaller_numbers(dtype: torch.dtype) -> list[str]:
    return ["a dtype of 16 bits"] if dtype.itemsize > 2 else []


def _or(choices: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))


def _in_words(of: Footprint) -> str:
    parts = [f"{name} {in_gigabytes(getattr(of, name))}" for name in ("weights", "cache", "activations")]
    return f"{in_gigabytes(of.total)} ({', '.join(parts)})"
