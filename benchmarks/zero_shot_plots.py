"""The plots of `zero_shot_study.py`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from zero_shot_results import Outcome, Results

from optimum_mllm_prune.evaluation.plots import error_bars


PANELS = {"Width": ("width",), "Layers, mixed, hidden size": ("layer", "mixed", "hidden")}
PAPER_STYLES = (("black", "-"), ("0.45", "-."))


def against_ratio(results: Results, model: str, path: Path) -> None:
    """What is retained against what was removed, a line for each variant with its intervals; the paper's is black."""
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 4.6), sharex=True, sharey=True)
    for axis, (title, families) in zip(axes, PANELS.items(), strict=True):
        lines: dict[str, list[Outcome]] = {}
        for (of, name, _), outcome in results.outcomes.items():
            if of == model and outcome.variant.family in families:
                lines.setdefault(name, []).append(outcome)
        _draw(axis, list(lines.values()))
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("backbone removed, %")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if lines:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
            axis.legend(frameon=False, fontsize=8, handlelength=3.2, **below)
    axes[0].set_ylabel(f"{model}: exact match retained, %")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _draw(axis: Axes, lines: Sequence[Sequence[Outcome]]) -> None:
    """The paper's with a band, ours with bars and a colour each; what is left as it was cut is dashed."""
    papers = [line for line in lines if line[0].variant.paper]
    ours = [line for line in lines if not line[0].variant.paper]
    for line, (colour, style) in zip(papers, PAPER_STYLES, strict=False):
        x, y, (below, above) = _points(line)
        axis.plot(x, y, style, color=colour, marker="s", markersize=4, linewidth=2, label=line[0].variant.name)
        low, high = ([v - b for v, b in zip(y, below, strict=True)], [v + a for v, a in zip(y, above, strict=True)])
        axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    for number, line in enumerate(ours):
        x, y, bars = _points(line)
        style = "--" if line[0].variant.config.get("repair") == "none" else "-"
        look = {"color": f"C{number % 10}", "marker": "o" if number < 10 else "^", "markersize": 4, "linewidth": 1.4}
        axis.errorbar(x, y, bars, linestyle=style, capsize=2, elinewidth=0.8, label=line[0].variant.name, **look)


def _points(line: Sequence[Outcome]) -> tuple[list[float], list[float], tuple[list[float], list[float]]]:
    by_size = sorted(line, key=lambda outcome: outcome.removed)
    intervals = [outcome.interval for outcome in by_size]
    return [100 * o.removed for o in by_size], [of.value for of in intervals], error_bars(intervals)
