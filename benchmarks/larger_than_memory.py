"""What pruning a model takes whose layers stay on disk: memory and time of every stage, against reading and writing.

    python benchmarks/random_llava.py llava7b --processor examples/digit_scenes/llava
    python benchmarks/larger_than_memory.py llava7b --max-memory 5GB

The command runs as a user would run it, in processes of their own. The floor is to read all weights once and to write
those that are left once, measured bare; calibration and the trial pass read them again, layer by layer.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from floor import PROGRAM, SCENES, read, written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--max-memory", default="5GB")
    parser.add_argument("--importance", default="block_influence")
    parser.add_argument("--method", default="layer")
    parser.add_argument("--ratio", default="0.15")
    parser.add_argument("--rows", default="8")
    parser.add_argument("--batch-size", default="2")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.model.parent) as scratch:
        rows, output = Path(scratch) / "rows", Path(scratch) / "out"
        subprocess.run([sys.executable, SCENES, rows, "--train", args.rows, "--test", "1"], check=True)
        words = ["--model", args.model, output, "--method", args.method, "--importance", args.importance]
        words += ["--ratio", args.ratio, "--repair", "none", "--max-memory", args.max_memory, "--device", "cpu"]
        if args.importance != "magnitude_l2":
            words += ["--dataset", rows, "--num-samples", args.rows, "--batch-size", args.batch_size]
        start = time.perf_counter()
        subprocess.run([PROGRAM, "mllm-prune", *words], check=True)
        seconds = time.perf_counter() - start
        report = json.loads((output / "pruning_report.json").read_text())
        left = report["size_bytes"]["after"] / report["size_bytes"]["before"]
        reading, writing = read(args.model), left * written(args.model, Path(scratch))
    # The largest of all processes that took part, the one that verifies included.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    sizes = report["size_bytes"]
    print(f"weights {sizes['before'] / 1e9:.2f} GB -> {sizes['after'] / 1e9:.2f} GB, {args.importance}")
    print(f"peak resident memory of any process: {peak:.2f} GB")
    print(f"whole command {seconds:.0f} s; read once {reading:.0f} s, write once {writing:.0f} s, measured bare")
    print("stages, s:", ", ".join(f"{name} {value:.0f}" for name, value in report["timings_seconds"].items()))


if __name__ == "__main__":
    main()
