"""The course of a training as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


PLOT_NAME = "recovery_loss.png"
# Okabe and Ito's colours, which most people can tell apart.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
_NAMES = {
    "loss": "weighted sum",
    "loss_sft": "cross entropy (sft)",
    "loss_logits": "divergence of logits",
    "loss_hidden": "distance of final hidden states",
    "loss_layers": "distance of layers",
}


def plot_losses(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw every term of the loss against the optimiser step; terms of very different size get a log scale.

    Args:
        history: Trainer's `state.log_history`.
        file: where to write the PNG.
    """
    logged = [entry for entry in history if "loss" in entry]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (key, name), colour in zip(_NAMES.items(), _COLOURS, strict=True):
        points = [(entry["step"], entry[key]) for entry in logged if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=colour, marker="." if len(points) < 30 else None)
    if evaluated:
        steps, losses = zip(*((entry["step"], entry["eval_loss"]) for entry in evaluated), strict=True)
        axes.plot(steps, losses, label="weighted sum, held-out rows", color="#000000", linestyle="--", marker="o")
    values = [value for entry in logged for key, value in entry.items() if key in _NAMES and value > 0]
    if values and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set(xlabel="optimiser step", ylabel="loss per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
