"""An evaluation as pictures: quality against size, and category by category."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from ..planning.byte_sizes import unit_of
from .scores import Score
from .statistics import Interval


SIZE_PLOT, CATEGORY_PLOT = "quality_and_size.png", "categories.png"
# Okabe and Ito's colours, which most people can tell apart.
_BEFORE, _AFTER = "#999999", "#0072B2"


class SizedModel(NamedTuple):
    """A point: what a model is called, the bytes of its weights, and its score."""

    name: str
    weight_bytes: int
    score: Interval


def plot_against_size(models: Sequence[SizedModel], metric: str, file: Path) -> None:
    """Draw the score of each model, with its interval, against the size of its weights.

    Args:
        models: at least one; each is labelled by its name.
        metric: what the score is, with its unit.
        file: where to write the PNG.
    """
    largest = max(model.weight_bytes for model in models)
    unit, symbol = unit_of(largest)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for model in models:
        value, size = model.score.value, model.weight_bytes / unit
        axes.errorbar(size, value, error_bars([model.score]), fmt="o", color=_AFTER, capsize=4)
        side = -1 if size > 0.7 * largest / unit else 1
        axes.annotate(
            model.name,
            (size, value),
            xytext=(8 * side, 6),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
        )
    axes.set(xlabel=f"weights ({symbol})", ylabel=metric, xlim=(0, largest / unit * 1.08))
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def plot_categories(score: Score, file: Path) -> None:
    """Draw the score of each category, with its interval, beside the baseline's where there is one.

    Args:
        score: has at least one category.
        file: where to write the PNG.
    """
    names = list(score.groups)
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = range(len(names))
    groups = score.groups.values()
    height = 0.38 if score.baseline else 0.7
    shift = height / 2 if score.baseline else 0
    values = [group.value.value for group in groups]
    bounds = error_bars([group.value for group in groups])
    axes.barh([p + shift for p in places], values, height, xerr=bounds, color=_AFTER, capsize=3, label="this model")
    if score.baseline:
        before = [group.baseline for group in groups]
        axes.barh([p - shift for p in places], before, height, color=_BEFORE, label="baseline")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axes.set_yticks(list(places), [f"{name} ({score.groups[name].rows:,})" for name in names])
    axes.set_xlabel(f"{score.metric}{' (%)' if score.unit == 'percent' else ''}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    figure.savefig(file, dpi=120)


def error_bars(intervals: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """How far bounds lie below and above their values, as matplotlib takes it: 0 where they are not known or infinite.

    A value may lie outside its own percentile interval, by rounding or where few rows decide: never less than 0.
    """
    sides = [of.value - of.low for of in intervals], [of.high - of.value for of in intervals]
    below, above = ([far if 0 < far < math.inf else 0.0 for far in side] for side in sides)
    return below, above
