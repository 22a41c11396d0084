"""How much heads give and how much the MLP: by rule, or as the errors say that their removal leaves."""

from collections.abc import Sequence

from torch import Tensor

from ..backbone import Group, Sizes
from ..importance import Scores
from .selection import weakest


def error_left(scores: Scores, group: Group, kept: int | None, kept_layers: Sequence[int]) -> float:
    """What a removal does to the output of the maps that read a group, mean over the blocks that stay.

    Args:
        scores: of a metric whose scores are errors: of a unit, the error after it and all weaker ones went.
        group: heads or channels.
        kept: units that stay in every block; None for all.
        kept_layers: decoder layers that stay.

    Returns:
        A share of sum |y|^2 in [0, 1]; 0 where nothing goes.
    """
    if kept is None:
        return 0.0
    rows = scores.of(group)
    removed = weakest(rows, group.units - kept, group.stride)
    pairs = zip(group.sites, rows, removed, strict=True)
    found = [_worst(row, units) for site, row, units in pairs if site.layer is None or site.layer in kept_layers]
    return sum(found) / len(found)


def least_error(choices: Sequence[tuple[Sizes, str]], scores: Scores, groups: Sequence[Group]) -> tuple[Sizes, str]:
    """Of sizes, each with a remark, those whose removal leaves the least error in all; of equals the first.

    Args:
        choices: sizes that meet the budget.
        scores: as for `error_left`.
        groups: what goes by width.

    Returns:
        Sizes, and the remark with that error.
    """

    def error(choice: tuple[Sizes, str]) -> float:
        sizes, _ = choice
        return sum(error_left(scores, group, getattr(sizes, group.kind), sizes.kept_layers) for group in groups)

    errors = [error(choice) for choice in choices]
    sizes, remark = choices[errors.index(min(errors))]
    return sizes, f"{remark}; of {len(choices)} splits the one with the least error, {min(errors):.4f}"


def _worst(row: Tensor, units: Sequence[int]) -> float:
    return row[list(units)].max().item() if units else 0.0
