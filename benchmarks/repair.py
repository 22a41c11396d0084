"""What the repair costs: seconds and memory, against calibration alone and against bare forward passes.

    python benchmarks/repair.py

A LLaVA with random weights loses 30 % by width. Calibration is timed by the default metric and by `taylor`, on the
same rows. The floor is what no repair can avoid: every layer run once in the original and once in the pruned model.
What is above it are the passes made twice, the sums of products and the solving of the equations.
"""

import argparse
import resource
import time

import torch
from random_models import adapted_processor, random_model

from optimum_mllm_prune import MLLMPruner, PruningConfig
from optimum_mllm_prune.calibration.batches import batches
from optimum_mllm_prune.calibration.rows import synthetic_row
from optimum_mllm_prune.repair import repair
from optimum_mllm_prune.repair.refit import BATCH_SIZE
from optimum_mllm_prune.surgery import pruned_model


def peak() -> float:
    """Largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    processor = adapted_processor()
    pruner = MLLMPruner(random_model(args.layers, args.width), processor)
    rows = [synthetic_row(seed) for seed in range(args.rows)]
    calibration = {}
    for importance in ("taylor", "reconstruction"):
        start = time.perf_counter()
        plan = pruner.plan(PruningConfig(ratio=0.3, importance=importance, num_samples=args.rows), rows)
        calibration[importance] = time.perf_counter() - start
    original, backbone = pruner.model, pruner.backbone()
    small = pruned_model(original, backbone, plan, keep_original=True)
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches(processor, rows, BATCH_SIZE):
            for model in (original, small):
                model(**batch.inputs, logits_to_keep=1, use_cache=False)
    floor, before = time.perf_counter() - start, peak()
    start = time.perf_counter()
    done = repair(original, small, backbone, plan, processor, rows)
    seconds = time.perf_counter() - start
    sizes = plan.parameters
    print(f"parameters {sizes['before']:,} -> {sizes['after']:,}, {args.rows} rows, {done.tokens:,} tokens")
    print(f"repair: {seconds:.1f} s")
    for name, other in {"both models once": floor, **calibration}.items():
        print(f"{name}: {other:.1f} s, of which the repair takes {seconds / other:.2f} times")
    print(f"memory above both models and a pass: {peak() - before:,.0f} MB")


if __name__ == "__main__":
    main()
