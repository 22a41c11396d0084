"""How time and memory of a calibration grow: with parameters, with tokens, with layers.

    python benchmarks/scaling.py docs/performance --seeds 3

Every point is a process of its own, on a LLaVA with random weights; time is that of the CPU, which other processes on
the machine disturb least, and memory the peak above the loaded model. A seed draws weights and rows. The exponent is
the slope of a line through the logarithms of a seed's points: 1 is in proportion. Writes `scaling.png` and
`scaling.json`, after every point, and goes on from there.
"""

import argparse
import json
import statistics
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
Found = dict[str, dict[str, list[dict[str, float]]]]
"""By what is varied and by metric, the points of all seeds."""

MEASURED = {"seconds": "CPU seconds", "peak": "peak memory above the model, GB"}


def measure(importance: str, layers: int, width: int, rows: int, seed: int, threads: int) -> dict[str, float]:
    """What one calibration takes."""
    torch.set_num_threads(threads)
    pruner = MLLMPruner(random_model(layers, width, seed=seed), adapted_processor())
    config = PruningConfig(method=METHODS[importance], importance=importance, num_samples=rows)
    loaded, start = peak_memory()["cpu"], time.process_time()
    pruner.score(config, [synthetic_row(seed * rows + row) for row in range(rows)])
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "peak": (peak_memory()["cpu"] - loaded) / 1e9,
        "parameters": pruner.backbone().backbone_parameters,
        "tokens": sum(pruner.calibration["tokens"].values()),
        "layers": layers,
        "seed": seed,
    }


def exponents(points: list[dict[str, float]], varied: str, name: str) -> list[float]:
    """Slope of the logarithm of what was measured over that of what was varied, of every seed, in ascending order."""
    by_seed = [[point for point in points if point["seed"] == seed] for seed in {point["seed"] for point in points}]
    return sorted(exponent([point[varied] for point in some], [point[name] for point in some]) for some in by_seed)


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y over log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def middle(points: list[dict[str, float]], varied: str, name: str) -> tuple[list[float], list[float]]:
    """Where the points lie, and the median over seeds of what was measured there."""
    places = sorted({point[varied] for point in points})
    return places, [statistics.median(p[name] for p in points if p[varied] == place) for place in places]


def plot(found: Found, file: Path) -> None:
    """Time above, memory below, one column for each thing that is varied; every seed a dot, lines through medians."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(len(MEASURED), len(SERIES))
    for column, varied in enumerate(SERIES):
        for row, (name, label) in enumerate(MEASURED.items()):
            one = axes[row, column]
            for importance, points in found[varied].items():
                x, y = middle(points, varied, name)
                (line,) = one.loglog(x, y, label=f"{importance}: {told(exponents(points, varied, name))}")
                one.loglog([p[varied] for p in points], [p[name] for p in points], ".", color=line.get_color())
            one.xaxis.set_minor_locator(NullLocator())
            one.set_xticks(x, [f"{value / 1e6:.0f} M" if value > 1e6 else str(value) for value in x])
            one.yaxis.set_minor_formatter(NullFormatter())
            one.set_xlabel(varied)
            one.set_ylabel(label)
            one.grid(which="both", alpha=0.3)
            # Room for the legend above the lines.
            one.set_ylim(top=one.get_ylim()[1] * 4)
            one.legend(fontsize=7, title="exponent", title_fontsize=7, loc="upper left")
    figure.savefig(file, dpi=120)


def told(found: list[float]) -> str:
    """The lowest and the highest of some exponents."""
    low, high = (f"{found[end]:.2f}" for end in (0, -1))
    return low if low == high else f"{low} - {high}"


def report(found: Found, output: Path) -> None:
    """Print the table; write figures and picture."""
    print("| | " + " | ".join(f"time by {varied} | memory by {varied}" for varied in SERIES) + " |")
    print("|---" * (1 + 2 * len(SERIES)) + "|")
    for importance in METHODS:
        cells = [told(exponents(found[varied][importance], varied, name)) for varied in SERIES for name in MEASURED]
        print(f"| `{importance}` | " + " | ".join(cells) + " |")
    plot(found, output / "scaling.png")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for picture and figures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument("--point", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        importance, *sizes = args.point
        print(json.dumps(measure(importance, *map(int, sizes), args.threads)))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "scaling.json"
    found: Found = json.loads(file.read_text()) if file.exists() else {}
    for seed in range(args.seeds):
        for varied, places in SERIES.items():
            for importance in METHODS:
                points = found.setdefault(varied, {}).setdefault(importance, [])
                for place in places[sum(point["seed"] == seed for point in points) :]:
                    points.append(measured_apart("--point", importance, *place, seed))
                    file.write_text(json.dumps(found, indent=1) + "\n")
    report(found, args.output)


if __name__ == "__main__":
    main()
