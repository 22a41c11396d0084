"""`mllm-prune --search`: rows to calibrate on and rows to score on, and what the search leaves behind."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..calibration.rows import load_rows
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance import METRICS
from ..importance.registry import scored_as
from ..pruner import MLLMPruner
from ..search import search
from ..search.result import Search
from .prune_choice import Choice
from .summary import aligned


HELD_OUT = 64


def rows_to_search(args: Namespace, config: PruningConfig) -> tuple[Sequence[Any], Sequence[Any]]:
    """Rows to calibrate on, none where weights alone decide, and others to score plans on; drawn once.

    Raises:
        UserInputError: no data set is named, it cannot be read, or has too few rows.
    """
    if args.dataset is None:
        raise UserInputError("--search scores plans on rows: name them with --dataset.")
    options = {key: value for key, value in (("token", args.token), ("cache_dir", args.cache_dir)) if value}
    metric = METRICS[config.importance][scored_as(config.method)]
    count = 0 if metric.needs == "weights" else config.num_samples or metric.samples
    held_out = HELD_OUT if args.search_rows is None else args.search_rows
    rows = load_rows(args.dataset, args.dataset_split, count + held_out, config.seed, **options)
    if len(rows) <= count:
        raise UserInputError(
            f"--search needs more rows than the {count} to calibrate on, and '{args.dataset}' has {len(rows)}: name a "
            "larger data set, or lower --num-samples."
        )
    return rows[:count], rows[count:]


def searched(pruner: MLLMPruner, choice: Choice, args: Namespace) -> Search:
    """Search and show what was found."""
    rows, held_out = rows_to_search(args, choice.config)
    found = search(pruner, choice.config, rows, held_out, meets=choice.meets)
    print(aligned(found.table()))
    for line in found.refused:
        print(f"left out: {line}")
    print(f"Taken: {found.best.name}.\n")
    return found


def keep(found: Search | None, folder: Path) -> None:
    """Put figures and picture of a search beside what came of it."""
    if found is not None:
        found.save(folder)
