"""`study.md` of `recovery_study.py`: verdicts, tables and where the plots are."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from study_plots import against_data, against_ratio
from study_results import FULL_RATE, RATE, Results
from study_verdicts import STATEMENTS, line


# From this line on the file is written by hand, and kept.
READING = "## What this says, and what it cannot"
METHOD_NAMES = {"layer": "layers", "width": "width"}
TRAINED = {"none": "nothing", "projector": "projector", "full": "projector and backbone, in full"}
ADAPTERS = "projector, adapters in the backbone"


def write_report(folder: Path, output: Path) -> Path:
    """Write `study.md` and `study/*.png` from the finished runs; returns where."""
    results, file = Results(folder), output / "study.md"
    against_ratio(results, output / "study" / "ratio.png")
    against_data(results, output / "study" / "data.png")
    by_hand = file.read_text(encoding="utf-8").partition(READING)[2] if file.exists() else "\n"
    file.write_text(_setting(results) + _figures(results) + READING + by_hand, encoding="utf-8")
    return file


def _setting(results: Results) -> str:
    """What was done, and how it is measured."""
    settings = results.settings
    train, test, passes, size = (settings[key] for key in ("train_rows", "test_rows", "passes", "batch_size"))
    return f"""# Pruning and recovery on digit scenes

The grid of Huang et al. ([arXiv 2507.20749](https://arxiv.org/abs/2507.20749),
[2604.24380](https://arxiv.org/abs/2604.24380)) on the model that is part of the repository (2.9 million parameters, 8
layers), and their statements put to the test. All above "{READING.removeprefix("## ")}" is written by

```bash
python benchmarks/recovery_study.py RESULTS --jobs 2      # goes on where it was broken off; --quick, --report-only
```

**Measured** is exact match by greedy generation on {test} rows that were never trained on, made of scans that were
never seen, in percent of the original's ({results.original:.1f} %). Cells show the mean over seeds
(smallest-largest; seed 0), or seed 0 where it alone has run: compare such a cell with seed 0 of the others.
{len(results)} runs. {_guessing(results)}

**Setting.** {train:,} training rows, {passes} passes of batches of {size} in float32; fewer rows get as many passes as
make {settings["least_steps"]} steps. Layers by `block_influence` on 50 rows, width by `taylor` on 10, heads and
channels at the same pace. Recoveries train adapters in the backbone and the projector in full, unless they are named
otherwise; `projector` and `full` learn from sft+hidden. The teacher is the unpruned model. A seed draws the training
rows, the few among them, the calibration rows and the order of training; the test rows stay the same.

**Ratios.** Whole layers come as close to the paper's ratios as they can, and width takes off the same, so that models
of equal size are compared. Removed of the backbone stands in brackets (layers / width).

**Learning rate.** {_rates(results)}

"""


def _figures(results: Results) -> str:
    """The verdicts and the tables that they rest on."""
    rounds = results.settings["rounds"]
    return f"""## Verdicts

The rules were written down before the grid ran. A statement holds when every comparison comes out as it
says, does not hold when none does, and holds partly otherwise; comparisons that do not are in italics.

| | statement | rule | verdict | figures |
|---|---|---|---|---|
{joined(line(statement, results) for statement in STATEMENTS)}

## Every recovery

{_recipes(results)}

![Retained against the ratio](study/ratio.png)

Of seed 0, which all recipes have; vertical lines join the smallest and largest of all seeds.

## Few data

{_few(results)}

![Retained against the share of the rows](study/data.png)

Of seed 0, vertical lines as above. Dotted: without training.

## Projector alone

sft+hidden on all rows; the difference is taken over seeds that both have.

{_projector(results)}

## Speed

CPU time of one thread: 16 prompts with an image, 16 new tokens each; medians of {rounds} rounds in which
the models take turns.

{_speed(results)}

## Stability of scores

Mean over the pairs of five seeds, each with its own calibration rows: Spearman's rank correlation of the scores within
a layer (of layers: among them), and how much of what would go at 30 % is the same. Of sets drawn by chance, as large a
share would be the same as is removed.

{_stability(results)}

"""


def _recipes(results: Results) -> str:
    rows = []
    for method in results.settings["methods"]:
        for recipe in results.settings["recipes"]:
            if recipe == "full" and not any(results.by_seed(method, r, recipe) for r in results.settings["ratios"]):
                continue
            cells = [_cell(results.by_seed(method, ratio, recipe)) for ratio in results.settings["ratios"]]
            rows.append([METHOD_NAMES[method], recipe, TRAINED.get(recipe, ADAPTERS), *cells])
    return table(["", "loss or recovery", "trained", *_heads(results)], rows)


def _few(results: Results) -> str:
    rows = []
    for method in results.settings["methods"]:
        for share in [*results.settings["shares"], 1.0]:
            seeds = [results.by_seed(method, ratio, "sft+hidden", share) for ratio in results.settings["ratios"]]
            number = round(share * results.settings["train_rows"])
            rows.append([METHOD_NAMES[method], f"{100 * share:.0f} % ({number:,})", *map(_cell, seeds)])
    return table(["", "rows", *_heads(results)], rows)


def _projector(results: Results) -> str:
    rows = []
    for method in results.settings["methods"]:
        for recipe in ("projector", "sft+hidden"):
            cells = [_cell(results.by_seed(method, ratio, recipe)) for ratio in results.settings["ratios"]]
            name = {"projector": "projector", "sft+hidden": "projector and backbone"}[recipe]
            rows.append([METHOD_NAMES[method], name, *cells])
        gains = [results.gain((method, r, "projector"), (method, r, "sft+hidden")) for r in results.settings["ratios"]]
        rows.append([METHOD_NAMES[method], "difference", *("" if gain is None else f"{gain:+.1f}" for gain in gains)])
    return table(["", "trained", *_heads(results)], rows)


def _speed(results: Results) -> str:
    if not results.speed:
        return "Not measured."
    whole = results.speed[0]["seconds_per_row"]
    rows = [
        [
            "original" if entry["method"] == "original" else METHOD_NAMES[entry["method"]],
            f"{100 * entry['ratio']:.0f} %",
            f"{entry['parameters']:,}",
            f"{1000 * entry['seconds_per_row']:.2f}",
            f"{whole / entry['seconds_per_row']:.2f}x",
        ]
        for entry in results.speed
    ]
    return table(["", "ratio", "parameters", "ms a row", "speed-up"], rows)


def _stability(results: Results) -> str:
    if not results.stability:
        return "Not measured."
    rows = [
        [e["kind"], str(e["samples"]), f"{e['rank_correlation']:.3f}", f"{e['overlap']:.0f} %"]
        for e in sorted(results.stability, key=lambda entry: entry["kind"], reverse=True)
    ]
    return table(["scores of", "calibration rows", "rank correlation", "the same is removed"], rows)


def _rates(results: Results) -> str:
    tried = results.by_rate()
    if not tried:
        return f"{RATE:g} for every adapter and projector."
    figures = ", ".join(f"{rate:g} retains {value:.1f} %" for rate, value in tried.items())
    return (
        f"{RATE:g} for every adapter and projector, {FULL_RATE:g} for `full`, cosine.\n"
        f"Tried on one cell alone (layers, 30 %, sft, seed 0): {figures}.\n"
        "It was tuned for no other cell and no other loss."
    )


def _guessing(results: Results) -> str:
    if not results.guessing:
        return ""
    floor = f"{results.guessing['retained']:.1f} %"
    return (
        f"The floor is {floor}: what the most frequent answer\nto every kind of question retains, whatever the image."
    )


def _heads(results: Results) -> list[str]:
    heads = []
    for ratio in results.settings["ratios"]:
        sides = [results.achieved(method, ratio) for method in results.settings["methods"]]
        sizes = " / ".join("?" if side is None else f"{100 * side:.1f}" for side in sides)
        heads.append(f"{100 * ratio:.0f} % ({sizes})")
    return heads


def _cell(by_seed: dict[int, float]) -> str:
    if not by_seed:
        return ""
    values = list(by_seed.values())
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f}; {values[0]:.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return joined(f"| {' | '.join(cells)} |" for cells in lines)


def joined(lines: Iterable[str]) -> str:
    """One below the other."""
    return "\n".join(lines)
