"""`zero_shot.md` of `zero_shot_study.py`: the verdict, the tables, and where the plots are."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from study_tables import table
from zero_shot_cells import TRAIN_ROWS, Cell
from zero_shot_plots import against_ratio
from zero_shot_results import Outcome, Results
from zero_shot_variants import FAMILIES, Variant
from zero_shot_verdicts import LEEWAY, Verdict, verdicts


# Above this line the file is written by hand, and kept.
GENERATED = "## Setting"
BEGINNING = "# Without any training\n\n"
FAMILY_NAMES = {"width": "width", "layer": "layers", "mixed": "mixed", "hidden": "hidden size"}
# Removed otherwise than asked for by more than this share of the backbone: said in the table.
_AS_ASKED = 0.01


def write_report(results: Results, wanted: Sequence[Cell], output: Path) -> Path:
    """Write `zero_shot.md` and `zero_shot/*.png` from what is there of the wanted cells; returns where."""
    file = output / "zero_shot.md"
    for model in results.originals:
        against_ratio(results, model, output / "zero_shot" / f"{model}.png")
    by_hand = file.read_text(encoding="utf-8").partition(GENERATED)[0] if file.exists() else BEGINNING
    variants = sorted({c.variant: None for c in wanted if c.variant}, key=lambda v: FAMILIES.index(v.family))
    ratios = sorted({cell.ratio for cell in wanted if cell.variant})
    seeds = max((cell.seed for cell in wanted), default=0) + 1
    parts = [_setting(results, wanted[0].test_rows, seeds), _verdicts(verdicts(results))]
    parts += [_model(results, model, variants, ratios) for model in results.originals]
    parts += [_variants(variants), _refused(results)]
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(by_hand + "\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return file


def cell_text(outcome: Outcome) -> str:
    """Mean over seeds, their range in round and the interval in square brackets."""
    low, high = min(outcome.by_seed), max(outcome.by_seed)
    spread = f" ({low:.1f}-{high:.1f})" if f"{low:.1f}" != f"{high:.1f}" else ""
    return f"{outcome.retained:.1f}{spread} [{outcome.interval.low:.1f}, {outcome.interval.high:.1f}]"


def verdict_row(verdict: Verdict) -> list[str]:
    """A row of the table of verdicts."""
    paper, ours, margin = verdict.paper, verdict.ours, verdict.margin
    return [
        verdict.model,
        FAMILY_NAMES[paper.variant.family],
        f"{100 * paper.ratio:g} %",
        f"{100 * paper.removed:.1f} / {100 * ours.removed:.1f}",
        f"{paper.lost:.1f} ({paper.variant.name})",
        f"{ours.lost:.1f} ({ours.variant.name}; best of {verdict.choices})",
        "" if verdict.share is None else f"{verdict.share:.0f} %",
        f"{margin.value:+.1f} [{margin.low:+.1f}, {margin.high:+.1f}]",
        f"**{'yes' if verdict.holds else 'no'}**{'' if verdict.sure else ', within chance'}",
    ]


def _setting(results: Results, test_rows: int, seeds: int) -> str:
    accuracy = ", ".join(f"`{model}` {value:.1f} %" for model, value in results.originals.items())
    mixed = f" These were measured by {results.codes} states of the code." if results.codes > 1 else ""
    return f"""{GENERATED}

All from here on is written by

```bash
python benchmarks/zero_shot_study.py RESULTS      # goes on where it was broken off; --only-report, --variants, ...
```

**Measured** is exact match by greedy generation on {test_rows} held-out rows, in percent of the original's
({accuracy}): the mean over {_seeds(seeds)}, (smallest-largest) where they
differ, and [the 95 % bootstrap interval of the mean over test rows], paired with the original. Nothing was trained;
calibration and refits draw their rows, those of a seed the same for all, from {TRAIN_ROWS:,} training rows.{mixed}

**The paper's methods** (Huang et al., [arXiv 2507.20749](https://arxiv.org/abs/2507.20749),
[2604.24380](https://arxiv.org/abs/2604.24380), section 3). *Width*: |w g| summed over coupled groups, ranked within
the layer, one shot, 10 rows, loss on the answer tokens. The paper leaves attention whole in the first 3 and the last
of 32 layers and the MLP in the first 4 and the last 2; of 8 layers that is less than one and about one at either end,
so both ways to round are measured: first and last layer whole, or the first alone. The others lose the same share of
heads and of channels, as large as the nominal ratio of the *whole* backbone asks for. Widths then differ between
layers, which no `config.json` can say: it is measured as a masked model, units zeroed where they are read, its
parameters counted as if cut. Where there are key-value groups, whole groups go, which the authors' code cannot.
*Layers*: Block Influence, 50 rows, the number of layers that comes nearest to the ratio.

All the others are standard checkpoints."""


def _seeds(number: int) -> str:
    return f"{number} calibration seeds" if number > 1 else "1 calibration seed"


def _verdicts(found: Sequence[Verdict]) -> str:
    if not found:
        return ""
    head = ["model", "what goes", "ratio", "removed, % (paper / ours)", "the paper's loses", "our best loses"]
    yes, unsure = sum(verdict.holds for verdict in found), sum(not verdict.sure for verdict in found)
    head += ["of the paper's", "half of the paper's less ours", "at most half"]
    return f"""## Does ours lose at most half of what the paper's method loses?

In percent of the original's exact match, mean over seeds. Of the paper's the better is taken, of ours the best of what
was measured on the same seeds and removes at most {100 * LEEWAY:g} point less; that best is chosen on the rows that it
is measured on, which flatters it a little. The last column but one has its 95 % bootstrap interval over test rows.

{table(head, [verdict_row(verdict) for verdict in found])}

**{yes} of {len(found)} yes**, {unsure} of all within chance (their interval holds both answers).
Where the paper's loses nothing, yes says that ours loses nothing.
What has no line was not measured, or nothing of ours could be compared."""


def _model(results: Results, model: str, variants: Sequence[Variant], ratios: Sequence[float]) -> str:
    head = ["", "variant", *(f"{100 * ratio:g} %" for ratio in ratios)]
    by_variant = {v: [results.outcomes.get((model, v.name, r)) for r in ratios] for v in variants}
    by_variant = {variant: found for variant, found in by_variant.items() if any(found)}
    best = [max((o.retained for o in column if o), default=None) for column in zip(*by_variant.values(), strict=True)]
    kept, gone = [], []
    for variant, found in by_variant.items():
        start = [FAMILY_NAMES[variant.family], f"*{variant.name}*" if variant.paper else variant.name]
        kept.append(start + [_marked(o, most) for o, most in zip(found, best, strict=True)])
        gone.append(start + [_removed(outcome) for outcome in found])
    return f"""## {model}

Exact match retained, in percent of the original's; the most in each column is bold.

{table(head, kept)}

![Retained against what was removed](zero_shot/{model}.png)

Removed of the backbone, in percent; in italics where more than {100 * _AS_ASKED:g} point from what was asked for.

{table(head, gone)}"""


def _marked(outcome: Outcome | None, most: float | None) -> str:
    if outcome is None:
        return ""
    return f"**{cell_text(outcome)}**" if outcome.retained == most else cell_text(outcome)


def _removed(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    text = f"{100 * outcome.removed:.1f}"
    return f"*{text}*" if abs(outcome.removed - outcome.ratio) > _AS_ASKED else text


def _variants(variants: Sequence[Variant]) -> str:
    rows = []
    for variant in variants:
        keys = ", ".join(f"{key} {value}" for key, value in asdict(variant)["config"].items())
        ends = ", ".join(f"{kind} {first} + {last}" for kind, (first, last) in variant.whole.items())
        rows.append([variant.name, keys + (f"; whole at the ends (first + last layers): {ends}" if ends else "")])
    return f"## Variants\n\n{table(['variant', 'keys of `PruningConfig` beside ratio and seed'], rows)}"


def _refused(results: Results) -> str:
    """What this version refuses, each reason once with where it was given."""
    where: dict[tuple[str, str], list[str]] = {}
    for (model, name, ratio), reason in results.refused.items():
        where.setdefault((name, reason), []).append(f"{model} {100 * ratio:g} %")
    measured = {name for _, name, _ in results.outcomes}
    rows = [[name, ", ".join(places) if name in measured else "", why] for (name, why), places in where.items()]
    return (
        f"## Refused by this version\n\n{table(['variant', 'where, if not everywhere', 'why'], rows)}" if rows else ""
    )
