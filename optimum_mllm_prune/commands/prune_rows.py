"""`mllm-prune`: the rows that are read, drawn once and before any weight is loaded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..calibration.rows import load_rows
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance.registry import metric_of
from ..repair import repair_method


DEFAULT_DATASET = "HuggingFaceH4/llava-instruct-mix-vsft"
HELD_OUT = 64


@dataclass(frozen=True)
class DrawnRows:
    """What each stage reads; None where it reads none.

    Attributes:
        calibration: to score parts on.
        repair: to refit maps on; the first of them are those of the calibration.
        held_out: other ones, to score plans of a search on.
    """

    calibration: Sequence[Any] | None = None
    repair: Sequence[Any] | None = None
    held_out: Sequence[Any] | None = None


def drawn_rows(args: Namespace, config: PruningConfig, scored: bool) -> DrawnRows:
    """Draw the rows of all stages.

    Args:
        args: the command's.
        config: says how many.
        scored: whether the scores are there already.

    Raises:
        UserInputError: they cannot be read, or a search is left without any to score plans on.
    """
    metric = metric_of(config.importance, config.method)
    count = 0 if scored or metric.needs == "weights" else config.num_samples or metric.samples
    # A dry run repairs nothing in the end, but a search ranks plans as they will be, and steps build on one another.
    repaired = repair_method(config) and (args.search or config.steps > 1 or not args.dry_run)
    more = config.repair_samples if repaired and (args.dataset or count) else 0
    held_out = (HELD_OUT if args.search_rows is None else args.search_rows) if args.search else 0
    if not count + more + held_out:
        return DrawnRows()
    rows = _read(args, config, max(count, more) + held_out)
    if not held_out:
        return DrawnRows(rows[:count] if count else None, rows[:more] if more else None)
    # Few rows serve the search first: the repair takes what is left of them.
    first = min(max(count, more), max(count, len(rows) - held_out))
    if len(rows) <= first:
        raise UserInputError(
            f"--search needs more rows than the {count} to calibrate on, and '{args.dataset}' has {len(rows)}: name a "
            "larger data set, or lower --num-samples."
        )
    return DrawnRows(rows[:count], rows[: min(more, first)] or None, rows[first:])


def _read(args: Namespace, config: PruningConfig, count: int) -> Sequence[Any]:
    options = {key: value for key, value in (("token", args.token), ("cache_dir", args.cache_dir)) if value}
    if args.dataset:
        return load_rows(args.dataset, args.dataset_split, count, config.seed, **options)
    try:
        rows = load_rows(DEFAULT_DATASET, args.dataset_split, count, config.seed, **options)
    except UserInputError as error:
        raise UserInputError(
            f"no calibration data: the default set '{DEFAULT_DATASET}' cannot be fetched; name your own with "
            "--dataset, or prune without data with --importance magnitude_l2."
        ) from error
    config.dataset = DEFAULT_DATASET
    return rows
