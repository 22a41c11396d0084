"""What a search has found, as figures, as a table and as a picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..evaluation.plots import error_bars
from ..evaluation.statistics import Interval
from ..planning import PruningPlan


SEARCH_NAME, SEARCH_PLOT = "pruning_search.json", "pruning_search.png"
# Okabe and Ito's colours, which most people can tell apart.
_BEST, _OTHER = "#D55E00", "#0072B2"


@dataclass(frozen=True)
class Tried:
    """One plan, carried out for a look.

    Attributes:
        name: what it is called.
        plan: the plan.
        perplexity: of the held-out rows' answers, without any training; lower is better.
        prefill_speedup: over the original at batch 1, measured; None where it was not.
        decode_speedup: likewise.
    """

    name: str
    plan: PruningPlan
    perplexity: Interval
    prefill_speedup: float | None
    decode_speedup: float | None


@dataclass(frozen=True)
class Search:
    """All plans that were tried, the best first.

    Attributes:
        tried: ranked by perplexity.
        original: perplexity of the unpruned model on the same rows.
        rows: how many held-out rows there were.
        refused: what could not be had, and why.
    """

    tried: Sequence[Tried]
    original: Interval
    rows: int
    refused: Sequence[str]

    @property
    def best(self) -> Tried:
        """The plan to take."""
        return self.tried[0]

    def table(self) -> list[tuple[str, ...]]:
        """Cells line by line, the head first."""
        head = ("plan", "removed", "parameters", "perplexity", "prefill", "decoding")
        whole = ("original", "", f"{self.best.plan.parameters['before']:,}", _interval(self.original), "", "")
        return [head, whole, *(_line(one) for one in self.tried)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; of each plan its sizes."""
        tried = [
            {
                "name": one.name,
                "parameters": one.plan.parameters,
                "ratio": one.plan.ratio,
                "perplexity": asdict(one.perplexity),
                "prefill_speedup": one.prefill_speedup,
                "decode_speedup": one.decode_speedup,
                "notes": one.plan.notes,
            }
            for one in self.tried
        ]
        found = {"tried": tried, "original": asdict(self.original), "rows": self.rows, "refused": list(self.refused)}
        return json.loads(json.dumps(found), parse_constant=lambda _: None)

    def save(self, folder: Path) -> None:
        """Write figures and picture into a folder."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / SEARCH_NAME).write_text(text + "\n", encoding="utf-8")
        self.draw(folder / SEARCH_PLOT)

    def draw(self, file: Path) -> None:
        """Draw the perplexity of every plan, with its interval, and the original's as a line."""
        figure = Figure(figsize=(8, 1.4 + 0.42 * len(self.tried)), layout="constrained")
        axes = figure.subplots()
        for place, one in enumerate(self.tried):
            bars = error_bars([one.perplexity])
            axes.errorbar(one.perplexity.value, place, xerr=bars, fmt="o", capsize=4, color=_OTHER if place else _BEST)
        axes.axvline(self.original.value, color="0.4", linestyle="--", label="original")
        axes.set_yticks(range(len(self.tried)), [f"{one.name} ({_removed(one)})" for one in self.tried])
        if self.tried[-1].perplexity.value > 20 * self.original.value:
            axes.set_xscale("log")
        axes.set_xlabel(f"perplexity of the answers of {self.rows} held-out rows, lower is better")
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
        figure.savefig(file, dpi=120)


def _line(one: Tried) -> tuple[str, ...]:
    speeds = ["-" if speed is None else f"{speed:.2f} x" for speed in (one.prefill_speedup, one.decode_speedup)]
    return (one.name, _removed(one), f"{one.plan.parameters['after']:,}", _interval(one.perplexity), *speeds)


def _removed(one: Tried) -> str:
    return f"{100 * one.plan.ratio['achieved']:.1f} %"


def _interval(found: Interval) -> str:
    bounds = "" if math.isnan(found.low) else f" ({found.low:.3f} - {found.high:.3f})"
    return f"{found.value:.3f}{bounds}"
