"""A few rows of many: drawn once from a seed, the same on every process and after a restart."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserInputError


def draw_few(
    size: int,
    fraction: float | None = None,
    max_samples: int | None = None,
    seed: int = 42,
    strata: Sequence[Any] | None = None,
) -> list[int]:
    """Positions of the rows to train on, ascending; all where neither a fraction nor a number is given.

    Args:
        size: number of rows there are.
        fraction: share of them to take, in (0, 1]; at least one row.
        max_samples: number of rows to take at most, after `fraction`.
        seed: of the draw. Of the same seed, a smaller draw is part of a larger one, unless it is stratified.
        strata: a value for each row; every value keeps its share, to rounding, and at least one row as far as the
            number reaches.

    Raises:
        UserInputError: `fraction` or `max_samples` is out of range.
    """
    check_share(fraction, max_samples)
    number = size if fraction is None else max(1, round(fraction * size))
    number = min(number, max_samples or number)
    order = np.random.default_rng(seed).permutation(size).tolist()
    chosen = order[:number] if strata is None else _stratified(order, strata, number)
    return sorted(chosen)


def check_share(fraction: float | None, max_samples: int | None) -> None:
    """Raise UserInputError where one of them, as for `draw_few`, is out of range."""
    if fraction is not None and not 0 < fraction <= 1:
        raise UserInputError(f"fraction must lie in (0, 1] (0.05 takes 5 % of the rows), got {fraction}.")
    if max_samples is not None and max_samples < 1:
        raise UserInputError(f"max_samples must be at least 1, got {max_samples}.")


def _stratified(order: Sequence[int], strata: Sequence[Any], number: int) -> list[int]:
    """The first rows of each stratum, the strata in turn by how far each is behind its share."""
    members: dict[Any, list[int]] = defaultdict(list)
    for position in order:
        members[strata[position]].append(position)
    # Row i of a stratum of n falls due at (i + 1/2) / n of the way; whoever falls due first is taken first.
    due = [((i + 0.5) / len(rows), position) for rows in members.values() for i, position in enumerate(rows)]
    firsts = [rows[0] for rows in members.values()][:number]
    rest = [position for _, position in sorted(due) if position not in set(firsts)]
    return [*firsts, *rest[: number - len(firsts)]]
