"""The plots of `recovery_study.py`."""

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from study_results import Results


# Colour, line, width: what has no training grey, the projector dashed, what the paper recommends thick; `full` is
# measured at two ratios alone, and a line would say something of those between.
STYLES = {
    "none": ("0.45", ":", 2.0),
    "projector": ("tab:orange", "--", 2.0),
    "sft": ("tab:blue", "-", 1.4),
    "kd": ("tab:green", "-", 1.4),
    "reverse kd": ("tab:olive", "-", 1.4),
    "hidden": ("tab:purple", "-", 1.4),
    "sft+kd": ("tab:cyan", "-", 1.4),
    "sft+hidden": ("tab:red", "-", 2.6),
    "sft+hidden+kd": ("tab:brown", "-", 1.4),
    "full": ("black", "none", 1.4),
}
TITLES = {"layer": "Whole layers removed", "width": "Heads and channels removed"}


def against_ratio(results: Results, path: Path) -> None:
    """What is retained against the ratio: a line of seed 0 for each recipe, a panel for each method."""
    figure, axes = _panels(results, "backbone removed, %")
    for method, axis in axes.items():
        for recipe, (colour, style, width) in STYLES.items():
            at = {r: results.by_seed(method, r, recipe) for r in results.settings["ratios"]}
            found = {100 * results.achieved(method, ratio): seeds for ratio, seeds in at.items() if seeds}
            look = {"color": colour, "linestyle": style, "linewidth": width, "markersize": 4, "label": recipe}
            _draw(axis, found, look | {"marker": "s" if recipe == "full" else "o"})
        if results.guessing:
            start = axis.get_xlim()[0], results.guessing["retained"]
            axis.axhline(results.guessing["retained"], color="0.7", linewidth=1)
            axis.annotate("guessing", start, (3, 3), textcoords="offset points", fontsize=8, color="0.5")
    _save(figure, path)


def against_data(results: Results, path: Path) -> None:
    """What is retained against the share of the rows: a line of seed 0 for each ratio, dotted without training."""
    figure, axes = _panels(results, "share of the rows, %")
    shares = [*results.settings["shares"], 1.0]
    for method, axis in axes.items():
        for i, ratio in enumerate(results.settings["ratios"]):
            at = {100 * share: results.by_seed(method, ratio, "sft+hidden", share) for share in shares}
            look = {"color": f"C{i}", "linewidth": 2, "marker": "o", "label": f"{100 * ratio:.0f} % removed"}
            _draw(axis, {x: seeds for x, seeds in at.items() if seeds}, look)
            untrained = results.by_seed(method, ratio, "none")
            if untrained:
                axis.axhline(untrained[min(untrained)], color=f"C{i}", linestyle=":", linewidth=1.2)
        axis.set_xscale("log")
        axis.set_xticks([100 * share for share in shares], [f"{100 * share:.0f}" for share in shares])
        axis.minorticks_off()
    _save(figure, path)


def _draw(axis: Axes, found: dict[float, dict[int, float]], look: dict[str, Any]) -> None:
    """A line through the first seed's values, and at each of them how far all seeds reach."""
    axis.plot(found.keys(), [seeds[min(seeds)] for seeds in found.values()], **look)
    for x, seeds in found.items():
        axis.plot([x, x], [min(seeds.values()), max(seeds.values())], color=look["color"], linewidth=2, alpha=0.4)


def _panels(results: Results, label: str) -> tuple[pyplot.Figure, dict[str, Axes]]:
    methods = results.settings["methods"]
    figure, axes = pyplot.subplots(
        1, len(methods), figsize=(5 * len(methods), 4.2), sharex=True, sharey=True, squeeze=False
    )
    for method, axis in zip(methods, axes[0], strict=True):
        axis.set_title(TITLES[method], fontsize=11)
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("exact match retained, %")
    return figure, dict(zip(methods, axes[0], strict=True))


def _save(figure: pyplot.Figure, path: Path) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.99, 0.5), frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
