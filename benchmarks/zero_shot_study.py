"""What is kept without any training, on digit scenes: the paper's own methods against ours.

    python benchmarks/zero_shot_study.py RESULTS

One JSON line for every finished cell (a model, a variant, a ratio, a seed) goes to the file RESULTS; the same command
goes on where it was broken off. Tables, plots and the verdict go to `zero_shot.md` and `zero_shot/` in --output.
Variants are in `zero_shot_variants.py`. The paper is Huang et al., arXiv 2507.20749 and 2604.24380.
"""

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
from zero_shot_cells import MODELS, RATIOS, Cell, cells, measure
from zero_shot_report import write_report
from zero_shot_results import Lines, Results
from zero_shot_variants import BY_NAME


def do(lines: Lines, wanted: Sequence[Cell]) -> None:
    """Measure all cells that were not yet, and say of each what it gave."""
    missing = [cell for cell in wanted if not lines.done(cell)]
    print(f"{len(wanted) - len(missing)} cells are there, {len(missing)} to go", flush=True)
    for number, cell in enumerate(missing, 1):
        # The bars of single passes.
        with redirect_stderr(io.StringIO()):
            line = measure(cell)
        lines.add(line)
        told = f"refused: {line['refused']}" if "refused" in line else f"{line['exact_match']:.1f} %"
        print(f"[{number}/{len(missing)}] {cell.name}: {told}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file of JSON lines; what is there is not measured again")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="where zero_shot.md goes (docs)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which models (all)")
    parser.add_argument("--variants", nargs="+", choices=BY_NAME, default=list(BY_NAME), help="which variants (all)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="nominal (0.15 0.3 0.45 0.6)")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds (3)")
    parser.add_argument("--test-rows", type=int, default=560, help="held-out rows (560)")
    parser.add_argument("--only-report", action="store_true", help="measure nothing, write tables of what is there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = cells(args.models, [BY_NAME[name] for name in args.variants], args.ratios, args.seeds, args.test_rows)
    lines = Lines(args.results)
    if not args.only_report:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        do(lines, wanted)
    print(write_report(Results(lines, wanted), wanted, args.output))


if __name__ == "__main__":
    main()
