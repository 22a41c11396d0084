"""What the repair costs: seconds and memory, against a forward pass over the same rows.

    python benchmarks/repair.py

A LLaVA with random weights loses 30 % by width. The floor is what no repair can avoid: every layer run once in the
original and once in the pruned model. What is above it are the passes made twice and the solving of the equations.
"""

import argparse
import resource
import time

import torch
from efficiency import adapted_processor, random_model

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
    pruner = MLLMPruner(random_model(processor, args.layers, args.width), processor)
    plan = pruner.plan(PruningConfig(ratio=0.3, importance="magnitude_l2"))
    rows = [synthetic_row(seed) for seed in range(args.rows)]
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
    print(f"both models once: {floor:.1f} s; repair: {seconds:.1f} s, {seconds / floor:.1f} times")
    print(f"memory above both models and a pass: {peak() - before:,.0f} MB")


if __name__ == "__main__":
    main()
