"""Every metric on the embedded model, at ratios that whole layers can reach: what is retained without any training.

    python benchmarks/digit_scenes.py examples/digit_scenes/llava

Prints a markdown table: exact match on held-out rows in percent of the original's, mean over calibration seeds, with
the smallest and the largest.
"""

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
from datasets import DatasetDict
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin


sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digit_scenes"))

import scenes

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers, retained
from optimum_mllm_prune.importance import METRICS


# Also measured with the heads left whole.
MLP_ALONE = ("activation", "magnitude_l2", "random", "taylor", "taylor_group", "wanda")


def accuracy(model: PreTrainedModel, processor: ProcessorMixin, data: DatasetDict) -> float:
    """Exact match on the test rows, in percent."""
    return exact_match(generate_answers(model, processor, data["test"]), reference_answers(data["test"]))


def pruned(
    model: PreTrainedModel, processor: ProcessorMixin, config: PruningConfig, data: DatasetDict
) -> tuple[PreTrainedModel, float]:
    """A pruned copy of the model, repaired if the config asks for it, and the ratio that it achieves."""
    pruner = MLLMPruner(copy.deepcopy(model), processor)
    plan = pruner.plan(config, data["train"])
    return pruner.prune(plan, data["train"]), plan.ratio["achieved"]


def line(name: str, found: list[list[float]]) -> str:
    """One row of the table: for every ratio the mean over seeds, and the range where there are several."""
    cells = []
    for scores in found:
        mean = f"{statistics.mean(scores):.1f}"
        cells.append(mean if len(set(scores)) == 1 else f"{mean} ({min(scores):.1f}-{max(scores):.1f})")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a digit-scenes model")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3], help="layers to remove (default 1 2 3)")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds (default 3)")
    parser.add_argument("--samples", type=int, help="calibration rows (default: 10 or 50, by metric)")
    parser.add_argument("--test-rows", type=int, default=560, help="held-out rows (default 560)")
    parser.add_argument("--metrics", nargs="+", choices=sorted(METRICS), help="which metrics (default all)")
    parser.add_argument("--repair", action="store_true", help="refit what is left after width pruning (128 rows)")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(args.model)
    data = scenes.build(train=1000, test=args.test_rows)
    before = accuracy(model, processor, data)
    layer_share = pruned(model, processor, PruningConfig(num_layers=1, importance="magnitude"), data)[1]
    ways = [(method, name, 1.0) for name, by_method in METRICS.items() for method in by_method]
    ways += [("width", name, 0.0) for name in MLP_ALONE]
    ways = [way for way in ways if args.metrics is None or way[1] in args.metrics]
    repair = "auto" if args.repair else "none"
    lines, achieved = [], {}
    for method, name, head_share in tqdm(sorted(ways), desc="Metrics"):
        by_ratio = []
        for count in args.layers:
            size = {"num_layers": count} if method == "layer" else {"ratio": count * layer_share}
            # That importance is of merged layers, so they are merged.
            size |= {"head_share": head_share, "repair": "merge" if name == "merge" else repair}
            scores = []
            for seed in range(args.seeds):
                config = PruningConfig(method=method, importance=name, seed=seed, num_samples=args.samples, **size)
                smaller, ratio = pruned(model, processor, config, data)
                achieved.setdefault((method, count), ratio)
                scores.append(retained(accuracy(smaller, processor, data), before))
                if METRICS[name][method].needs == "weights" and name != "random" and not args.repair:
                    break
            by_ratio.append(scores)
        what = method if head_share else "width, MLP alone"
        lines.append(line(f"{what} | `{name}`", by_ratio))
    shares = [f"{100 * achieved['layer', c]:.1f} / {100 * achieved['width', c]:.1f} %" for c in args.layers]
    print(f"\nOriginal: {before:.1f} % exact match. Columns: share of the backbone removed (layers / width).\n")
    print(f"| method | importance | {' | '.join(shares)} |\n|---|---|{'---|' * len(shares)}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
