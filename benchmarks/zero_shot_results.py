"""What the cells of `zero_shot_study.py` have given: a file with a line for each, and figures of several together."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from zero_shot_cells import Cell
from zero_shot_variants import Variant

from optimum_mllm_prune.evaluation import retained
from optimum_mllm_prune.evaluation.metrics.row_metric import percent
from optimum_mllm_prune.evaluation.statistics import Interval, retained_interval


class Lines:
    """A file of JSON lines, one a cell, that only grows: of two lines of a cell the later counts.

    A line is written at once, and one that was cut short by a crash is passed over.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._by_key = {line["key"]: line for line in map(_read, self._texts()) if line}

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """The line of a cell; None where there is none yet."""
        return self._by_key.get(cell.key)

    def done(self, cell: Cell) -> bool:
        """Whether a cell was measured. What was refused is tried again: another version may know it."""
        return "exact_match" in (self.of(cell) or {})

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line, unless it says of a refusal what is known."""
        if self._by_key.get(line["key"], {}).get("refused", "") == line.get("refused"):
            return
        self._by_key[line["key"]] = line
        # An empty line first where the last one has no end.
        start = "" if not self.file.exists() or self.file.read_bytes().endswith(b"\n") else "\n"
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write(start + json.dumps(line) + "\n")

    def _texts(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []


@dataclass(frozen=True)
class Outcome:
    """What a variant keeps at a ratio, over the seeds that were measured.

    Attributes:
        variant: how it was pruned.
        ratio: that was asked for.
        original: 1 for each test row that the original answers right, else 0, float64 (rows,).
        right: the same of the pruned model, float64 (seeds, rows).
        seeds: which.
        removed: share of the backbone that went, mean over seeds.
    """

    variant: Variant
    ratio: float
    original: np.ndarray
    right: np.ndarray
    seeds: tuple[int, ...]
    removed: float

    @property
    def by_seed(self) -> list[float]:
        """Exact match retained, in percent of the original's."""
        return [retained(100 * row.mean(), 100 * self.original.mean()) for row in self.right]

    @property
    def retained(self) -> float:
        """Mean over seeds, in percent."""
        return statistics.mean(self.by_seed)

    @property
    def lost(self) -> float:
        """What is not retained, in percent of the original's."""
        return 100 - self.retained

    @cached_property
    def interval(self) -> Interval:
        """Retained, mean over seeds, with the 95 % bootstrap interval over test rows."""
        ones = np.ones_like(self.original)
        before, after = (np.stack([rows, ones], axis=1) for rows in (self.original, self.right.mean(axis=0)))
        return retained_interval(before, after, lambda sums: percent(sums[..., 0], sums[..., 1]))


class Results:
    """The outcomes of some cells.

    Attributes:
        outcomes: by model, name of the variant and ratio, of what was measured.
        refused: the same to the reason, of what was refused.
        originals: model to the exact match of the original in percent.
        codes: how many states of the code have measured.
    """

    def __init__(self, lines: Lines, cells: Sequence[Cell]) -> None:
        found = [(cell, line) for cell in cells if (line := lines.of(cell))]
        measured = {cell: line for cell, line in found if "exact_match" in line}
        whole = {cell.model: line for cell, line in measured.items() if cell.variant is None}
        self.originals: dict[str, float] = {model: line["exact_match"] for model, line in whole.items()}
        self.codes = len({line["code"] for line in measured.values()})
        self.refused = {_where(cell): line["refused"] for cell, line in found if "refused" in line}
        self.outcomes: dict[tuple[str, str, float], Outcome] = {}
        for where in dict.fromkeys(_where(cell) for cell in measured if cell.variant and cell.model in whole):
            mine = {cell: line for cell, line in measured.items() if cell.variant and _where(cell) == where}
            self.outcomes[where] = _outcome(mine, whole[where[0]])


def _outcome(lines: dict[Cell, dict[str, Any]], original: dict[str, Any]) -> Outcome:
    cell = next(iter(lines))
    return Outcome(
        cell.variant,
        cell.ratio,
        _bits(original["right"]),
        np.stack([_bits(line["right"]) for line in lines.values()]),
        tuple(one.seed for one in lines),
        statistics.mean(line["removed"] for line in lines.values()),
    )


def _where(cell: Cell) -> tuple[str, str, float]:
    return cell.model, cell.variant.name if cell.variant else "", cell.ratio


def _bits(text: str) -> np.ndarray:
    return np.array(list(text), dtype=np.float64)


def _read(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
