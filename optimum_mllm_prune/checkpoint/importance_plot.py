"""The scores of a plan as a picture: how important every part is, layer by layer, and which parts went."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..importance import Scores
from ..planning import PruningPlan


PLOT_NAME = "pruning_importance.png"
# Okabe and Ito's colours, which most people can tell apart.
_STAYS, _GOES = "#0072B2", "#D55E00"
_RAMPS = {
    _STAYS: LinearSegmentedColormap.from_list("stays", ["#D4E6F0", _STAYS, "#003A5C"]),
    _GOES: LinearSegmentedColormap.from_list("goes", ["#F9E1D2", _GOES, "#7A3500"]),
}
_UNITS = {"group": "key-value groups", "query": "query heads"}
# As many columns as can be told apart on the picture.
_COLUMNS = 120


def plot_importance(scores: Scores, plan: PruningPlan, file: Path) -> None:
    """Draw what the plan's method has scored, what stays in blue and what goes in orange.

    For layers a bar each. For the hidden size its dimensions in falling order. For widths a row of cells a layer,
    the most important first and darkest, and beside it the share of the layer's importance that goes; many channels
    are averaged to 120 cells.

    Args:
        scores: that the plan was made from.
        plan: what is removed.
        file: where to write the PNG.
    """
    draw = {"layer": _draw_layers, "hidden": _draw_hidden}.get(plan.method, _draw_widths)
    draw(scores, plan).savefig(file, dpi=120)


def _draw_layers(scores: Scores, plan: PruningPlan) -> Figure:
    values = scores.tensors["layers"].double().numpy()
    gone = np.isin(np.arange(len(values)), plan.removed_layers)
    figure = Figure(figsize=(np.clip(0.16 * len(values), 6, 13), 3.6), layout="constrained")
    axes = figure.subplots()
    for which, colour, name in ((~gone, _STAYS, "stays"), (gone, _GOES, "goes")):
        axes.bar(np.flatnonzero(which), values[which], color=colour, label=f"{name} ({which.sum()})")
    positive = values[values > 0]
    if len(positive) and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
    axes.set(xlabel="decoder layer", ylabel=f"importance ({plan.importance})", xlim=(-0.8, len(values) - 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw_hidden(scores: Scores, plan: PruningPlan) -> Figure:
    values = scores.tensors["hidden"].double().numpy()
    order = np.argsort(-values, kind="stable")
    values, gone = values[order], np.isin(order, plan.removed_hidden)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(values))
    for which, colour, name in ((~gone, _STAYS, "stays"), (gone, _GOES, "goes")):
        heights = np.where(which, values, 0)
        axes.fill_between(places, heights, step="mid", color=colour, label=f"{name} ({which.sum()})")
    axes.set(xlabel="dimensions of the residual stream, most important first", xlim=(-0.5, len(values) - 0.5))
    axes.set(ylabel=f"importance ({plan.importance})", ylim=(0, None))
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw_widths(scores: Scores, plan: PruningPlan) -> Figure:
    found = {kind: _by_layer(scores, plan, kind) for kind in ("heads", "channels") if kind in scores.tensors}
    figure = Figure(figsize=(5 * len(found), np.clip(1.6 + 0.2 * plan.num_layers, 3, 11)), layout="constrained")
    panels = figure.subplots(1, 2 * len(found), sharey=True, width_ratios=[3, 1] * len(found))
    for number, (kind, (values, gone)) in enumerate(found.items()):
        cells, shares = panels[2 * number : 2 * number + 2]
        _draw_cells(cells, values, gone)
        name, units = ("attention heads", _UNITS[plan.head_unit]) if kind == "heads" else ("MLP channels", "channels")
        cells.set_title(f"{name}: {_share(gone)} go", fontsize="medium")
        cells.set_xlabel(f"{units}, most important first")
        _draw_shares(shares, values, gone)
    panels[0].set(ylabel="decoder layer", ylim=(plan.num_layers - 0.5, -0.5))
    panels[0].yaxis.set_major_locator(MaxNLocator(20, integer=True))
    handles = [Patch(color=_STAYS, label="stays"), Patch(color=_GOES, label="goes")]
    title = f"importance by {plan.importance}; the darker, the more, within its layer"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _by_layer(scores: Scores, plan: PruningPlan, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (layers, units), NaN where a layer has no such block, and which of them go, both in falling order."""
    values = scores.tensors[kind].double().numpy()
    gone = np.zeros(values.shape, dtype=bool)
    removed = plan.removed_heads if kind == "heads" else plan.removed_channels
    # A plan names the blocks of the decoder in order, and those outside behind them.
    for layer, units in zip(np.flatnonzero(~np.isnan(values).any(axis=1)), removed.values(), strict=False):
        gone[layer, units] = True
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(gone, order, axis=1)


def _draw_cells(axes: Axes, values: np.ndarray, gone: np.ndarray) -> None:
    """A row of cells a layer; where units are many, a cell is the mean of neighbours."""
    layers, units = values.shape
    columns = min(units, _COLUMNS)
    bounds = np.arange(columns + 1) * units // columns
    picture = np.ones((layers, columns, 3))
    for layer in np.flatnonzero(~np.isnan(values).any(axis=1)):
        # The root shows small scores too.
        tones = np.sqrt(np.clip(values[layer] / max(values[layer].max(), np.finfo(float).tiny), 0, 1))
        for column, (start, end) in enumerate(pairwise(bounds)):
            ramp = _RAMPS[_GOES if gone[layer, start:end].mean() >= 0.5 else _STAYS]
            picture[layer, column] = ramp(tones[start:end].mean())[:3]
    axes.imshow(picture, aspect="auto", interpolation="nearest", extent=(0, units, layers - 0.5, -0.5))
    axes.hlines(np.arange(1, layers) - 0.5, 0, units, color="white", linewidth=0.8)
    if units <= 40:
        axes.vlines(np.arange(1, units), -0.5, layers - 0.5, color="white", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_shares(axes: Axes, values: np.ndarray, gone: np.ndarray) -> None:
    """Of each layer, how much of the sum of its scores goes; nothing where there is nothing to lose."""
    total = np.nansum(values, axis=1)
    lost = np.where(gone, values, 0).sum(axis=1)
    share = 100 * np.divide(lost, total, out=np.zeros(len(total)), where=total > 0)
    axes.barh(np.arange(len(share)), share, color=_GOES)
    axes.set_title("their importance", fontsize="medium")
    axes.set_xlabel("% of the layer's")
    axes.set_xlim(0, max(10, 1.05 * share.max()))
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _share(gone: np.ndarray) -> str:
    layers = gone.any(axis=1)
    return f"{100 * gone[layers].mean():.0f} %" if layers.any() else "none"
