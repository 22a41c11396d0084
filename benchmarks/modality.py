"""Scores in which image, prompt and answer tokens count differently, on the embedded model: what is retained.

    python benchmarks/modality.py examples/digit_scenes/llava

Each metric is calibrated once a seed and weighted anew for every column of weights; nothing is repaired or trained.
Prints a markdown table: exact match on held-out rows in percent of the original's, mean over calibration seeds, with
the smallest and the largest.
"""

import argparse
import copy
from itertools import product
from pathlib import Path

import torch
from digit_scenes import accuracy, line, scenes
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.evaluation import retained


WEIGHTS = {
    "all alike": None,
    "no image tokens": {"image": 0.0},
    "no prompt tokens": {"prompt": 0.0},
    "no answer tokens": {"answer": 0.0},
    "answer tokens 4 times": {"answer": 4.0},
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a digit-scenes model")
    parser.add_argument("--metrics", nargs="+", default=["activation", "taylor_group", "wanda"])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.24, 0.36], help="default 0.24 0.36")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds (default 3)")
    parser.add_argument("--test-rows", type=int, default=560, help="held-out rows (default 560)")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(args.model)
    data = scenes.build(train=1000, test=args.test_rows)
    before = accuracy(model, processor, data)
    found: dict[tuple, list[float]] = {}
    for name, seed in tqdm(list(product(args.metrics, range(args.seeds))), desc="Calibrations"):
        scores = MLLMPruner(model, processor).score(PruningConfig(importance=name, seed=seed), data["train"])
        for (said, weights), ratio in product(WEIGHTS.items(), args.ratios):
            config = PruningConfig(ratio=ratio, importance=name, seed=seed, repair="none", modality_weights=weights)
            pruner = MLLMPruner(copy.deepcopy(model), processor)
            smaller = pruner.prune(pruner.plan(config, scores=scores))
            kept = retained(accuracy(smaller, processor, data), before)
            found.setdefault((name, said, ratio), []).append(kept)
    print(f"\nOriginal: {before:.1f} % exact match. Columns: share of the backbone removed by width.\n")
    print(f"| importance | tokens | {' | '.join(f'{100 * ratio:g} %' for ratio in args.ratios)} |")
    print(f"|---|---|{'---|' * len(args.ratios)}")
    for name, said in product(args.metrics, WEIGHTS):
        print(line(f"`{name}` | {said}", [found[name, said, ratio] for ratio in args.ratios]))


if __name__ == "__main__":
    main()
