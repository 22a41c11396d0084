"""How time and memory of a calibration grow: with parameters, with tokens, with layers.

    python benchmarks/scaling.py docs/performance

Every point is a process of its own, on a LLaVA with random weights; time is that of the CPU, which other processes on
the machine disturb least, and memory the peak above the loaded model. The exponent is the slope of a line through the
logarithms: 1 is in proportion. Writes `scaling.png` and `scaling.json`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from apart import measured_apart
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from random_models import adapted_processor, random_model

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.calibration.rows import synthetic_row
from optimum_mllm_prune.checkpoint import peak_memory


METHODS = {"block_influence": "layer", "activation": "width", "taylor_group": "width", "taylor": "width"}
# What is varied, and (layers, hidden size, rows) of its points.
SERIES = {
    "parameters": [(8, 512, 8), (8, 1024, 8), (8, 2048, 8), (8, 3072, 8)],
    "tokens": [(8, 1024, 4), (8, 1024, 8), (8, 1024, 16), (8, 1024, 32)],
    "layers": [(4, 512, 8), (8, 512, 8), (16, 512, 8), (32, 512, 8)],
}
MEASURED = {"seconds": "CPU seconds", "peak": "peak memory above the model, GB"}


def measure(importance: str, layers: int, width: int, rows: int, threads: int) -> dict[str, float]:
    """What one calibration takes."""
    torch.set_num_threads(threads)
    pruner = MLLMPruner(random_model(layers, width), adapted_processor())
    config = PruningConfig(method=METHODS[importance], importance=importance, num_samples=rows)
    loaded, start = peak_memory()["cpu"], time.process_time()
    pruner.score(config, [synthetic_row(seed) for seed in range(rows)])
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "peak": (peak_memory()["cpu"] - loaded) / 1e9,
        "parameters": pruner.backbone().backbone_parameters,
        "tokens": sum(pruner.calibration["tokens"].values()),
        "layers": layers,
    }


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(found: dict[str, dict[str, list[dict]]], file: Path) -> None:
    """Time above, memory below, one column for each thing that is varied."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(len(MEASURED), len(SERIES))
    for column, varied in enumerate(SERIES):
        for row, (name, label) in enumerate(MEASURED.items()):
            one = axes[row, column]
            for importance, points in found[varied].items():
                x, y = [point[varied] for point in points], [point[name] for point in points]
                one.loglog(x, y, marker="o", label=f"{importance}: {exponent(x, y):.2f}")
            one.xaxis.set_minor_locator(NullLocator())
            one.set_xticks(x, [f"{value / 1e6:.0f} M" if value > 1e6 else str(value) for value in x])
            one.yaxis.set_minor_formatter(NullFormatter())
            one.set_xlabel(varied)
            one.set_ylabel(label)
            one.grid(which="both", alpha=0.3)
            one.legend(fontsize=7, title="exponent", title_fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", help="folder for picture and figures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="of every point; the quickest counts")
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        importance, *sizes = args.point
        print(json.dumps(measure(importance, *map(int, sizes), args.threads)))
        return
    found: dict[str, dict[str, list[dict]]] = {}
    for varied, points in SERIES.items():
        found[varied] = {importance: [] for importance in METHODS}
        for importance, measured in found[varied].items():
            for point in points:
                figures = [measured_apart("--point", importance, *point) for _ in range(args.repeats)]
                measured.append(min(figures, key=lambda one: one["seconds"]))
    print("| | " + " | ".join(f"time by {varied} | memory by {varied}" for varied in SERIES) + " |")
    print("|---" * (1 + 2 * len(SERIES)) + "|")
    for importance in METHODS:
        cells = []
        for varied in SERIES:
            points = found[varied][importance]
            x = [point[varied] for point in points]
            cells += [f"{exponent(x, [point[name] for point in points]):.2f}" for name in MEASURED]
        print(f"| `{importance}` | " + " | ".join(cells) + " |")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        plot(found, args.output / "scaling.png")
        (args.output / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
