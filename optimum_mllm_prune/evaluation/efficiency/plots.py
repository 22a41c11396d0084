"""What memory is made of as a picture."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ...errors import UserInputError
from ...planning.byte_sizes import unit_of
from .report import EfficiencyReport
from .size import PARTS


PLOT_NAME = "memory.png"
# Okabe and Ito's colours, which most people can tell apart.
_COLOURS = ("#999999", "#CC79A7", "#F0E442", "#0072B2", "#56B4E9", "#009E73", "#D55E00")
_DARK = "#0072B2"
# A part narrower than this share of the longest bar has no room for its figure.
_NARROW = 0.05


def plot_memory(
    reports: Mapping[str, EfficiencyReport], file: Path, context: int | None = None, batch_size: int = 1
) -> None:
    """Draw the bytes of weights, by part, and of the key-value cache as a stacked bar a model, the first on top.

    Args:
        reports: of `measure_efficiency`.
        file: where to write the PNG.
        context: tokens that the cache holds; by default the prompt and what was generated.
        batch_size: rows that it holds them for.

    Raises:
        UserInputError: there is no report.
    """
    if not reports:
        raise UserInputError("there is no report to draw: measure a model first.")
    stacks = {name: memory_parts(report, context, batch_size) for name, report in reports.items()}
    totals = [sum(stack.values()) for stack in stacks.values()]
    unit, symbol = unit_of(max(totals))
    figure = Figure(figsize=(8, 1.6 + 0.7 * len(stacks)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(stacks)
    for part, colour in zip(next(iter(stacks.values())), _COLOURS, strict=True):
        sizes = [stack[part] / unit for stack in stacks.values()]
        bars = axes.barh(list(stacks), sizes, left=left, height=0.6, label=part, color=colour, edgecolor="white")
        figures = [_figure(size) if size * unit > _NARROW * max(totals) else "" for size in sizes]
        ink = "white" if colour == _DARK else "black"
        axes.bar_label(bars, figures, label_type="center", fontsize="small", color=ink)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, total in enumerate(totals):
        share = "" if row == 0 else f" ({total / totals[0]:.0%})"
        axes.text(total / unit, row, f" {_figure(total / unit)} {symbol}{share}", va="center")
    axes.set(xlabel=f"memory ({symbol})", xlim=(0, max(totals) / unit * 1.2))
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(file, dpi=120)


def memory_parts(report: EfficiencyReport, context: int | None = None, batch_size: int = 1) -> dict[str, int]:
    """Bytes of each part of the weights, and of the cache of `batch_size` rows; arguments as for `plot_memory`.

    The name of the last entry says what cache it is. A cache that could not be read counts nothing.
    """
    cost = report.cost
    tokens = cost.prompt_tokens + report.new_tokens if context is None else context
    rows = "" if batch_size == 1 else f"{batch_size} x "
    cache = 0 if cost.cache is None else batch_size * cost.cache.bytes_at(tokens)
    return {part: report.size.parts[part] for part in PARTS} | {f"KV cache ({rows}{tokens:,} tokens)": cache}


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
