"""LLaVA-1.5-7B on one GPU: how long pruning takes and what memory, and how fast what is left generates.

    python benchmarks/gpu.py WORK

A model of that shape with random bfloat16 weights is written into the folder WORK (14.1 GB, and as much again for the
results). Every command runs as a user would run it, in a process of its own: `block_influence` on 50 rows of 700
tokens, `taylor` on 10 with gradient checkpointing, the default of width (`reconstruction`, then the repair) on 128,
and, of the paper's 30 %, prefill and decoding beside the original at 1, 8 and 32 rows. `--only` runs some of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from floor import seconds_of, told
from long_rows import write_rows
from random_llava import make
from random_models import PROCESSOR


COMMAND = "optimum_mllm_prune.commands"
PARTS = ("layers", "width", "default", "speed")


def run(name: str, *words: object) -> float:
    """A command; its seconds from start to end."""
    command = [sys.executable, "-m", f"{COMMAND}.{name}", *map(str, words)]
    return seconds_of(lambda: subprocess.run(command, check=True))


def pruned(work: Path, name: str, *words: object) -> None:
    """Prune, and print what it took."""
    output = work / name
    asked = ("--model", work / "model", output, "--ratio", "0.3", "--dataset", work / "rows", "--overwrite", *words)
    seconds = run("prune", *asked)
    report = json.loads((output / "pruning_report.json").read_text())
    gpu, cpu = (report["peak_memory_bytes"][kind] / 1e9 for kind in ("gpu", "cpu"))
    print(f"{name}: whole command {seconds:.1f} s; peak {gpu:.2f} GB of GPU, {cpu:.2f} GB of memory")
    print(f"stages, s: {told(report['timings_seconds'])}; floors, s: {told(report['floor_seconds'])}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the model and the results")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--forward-rows", type=int, default=50)
    parser.add_argument("--gradient-rows", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=700)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="which rows are drawn (0)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="what to run; speed needs the first two"
    )
    args = parser.parse_args()
    work, device = args.work, ("--device", args.device)
    if args.device == "cuda":
        print(f"on {torch.cuda.get_device_name()}, torch {torch.__version__}")
    if not (work / "model").exists():
        make(work / "model", PROCESSOR, args.layers, device=args.device)
    write_rows(work / "rows", work / "model", args.rows, args.tokens, args.seed)
    scored = ("--repair", "none", *device)
    by_layer = ("--method", "layer", "--importance", "block_influence", "--num-samples", args.forward_rows)
    by_width = ("--method", "width", "--importance", "taylor", "--num-samples", args.gradient_rows)
    if "layers" in args.only:
        pruned(work, "layers", *by_layer, *scored)
    if "width" in args.only:
        pruned(work, "width", *by_width, "--gradient-checkpointing", *scored)
    if "default" in args.only:
        pruned(work, "default", "--method", "width", *device)
    for name in ("layers", "width") if "speed" in args.only else ():
        measured = ("--efficiency", "--efficiency-batch-sizes", *args.batch_sizes)
        measured += ("--efficiency-tokens", args.new_tokens, "--overwrite", *device)
        run("eval", "--model", work / name, "--baseline", work / "model", work / f"{name}-evaluation", *measured)


if __name__ == "__main__":
    main()
