"""The whole of `mllm-prune` against its floor: what no pruning can avoid, measured bare in the same run.

    python benchmarks/floor.py --importance taylor --tokens 300

The command runs as a user would run it, on a LLaVA with random weights, in every turn another one. The floor is to
start Python with torch and transformers, read all weights, run all rows forward and, where a metric looks at
gradients, backward (of what it looks at: the inputs of maps, or all weights of the decoder), and write the weights
that are left. Verification is told apart: in a process of its own the checkpoint is read and run once more.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from long_rows import write_rows
from peers import differentiate, forward, forward_and_backward
from random_models import adapted_processor, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.calibration.rows import load_rows
from optimum_mllm_prune.importance.registry import metric_of


PROGRAM = Path(sysconfig.get_path("scripts")) / "optimum-cli"
IMPORTS = "import torch; from transformers import AutoProcessor, LlavaForConditionalGeneration"


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def told(seconds: Mapping[str, float]) -> str:
    """Stages and what they took, in words."""
    return ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())


def started() -> float:
    """Seconds until a Python process has imported torch and transformers."""
    return seconds_of(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True))


def read(model: Path) -> float:
    """Seconds to read every tensor of a checkpoint once, a file at a time."""
    return sum(
        seconds_of(lambda file=file: [tensor.clone() for tensor in load_file(file).values()])
        for file in sorted(model.glob("*.safetensors"))
    )


def written(model: Path, folder: Path) -> float:
    """Seconds to write every tensor of a checkpoint once, a file at a time."""
    total = 0.0
    for file in sorted(model.glob("*.safetensors")):
        tensors, target = load_file(file), folder / "bare.safetensors"
        total += seconds_of(lambda tensors=tensors, target=target: save_file(tensors, target))
        target.unlink()
    return total


def passes(model: Path, rows: Path, importance: str, num_samples: int) -> float:
    """Seconds for bare passes over the rows."""
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    drawn = [normalize_row(row) for row in load_rows(str(rows), None, num_samples)]
    metric = metric_of(importance, method_of(importance))
    with_gradients = forward_and_backward if metric.blind_to_weights else differentiate
    return seconds_of(partial(with_gradients if metric.needs == "backward" else forward, loaded, drawn))


def method_of(importance: str) -> str:
    """What goes by this metric here."""
    return "layer" if importance == "block_influence" else "width"


def pruned(model: Path, output: Path, rows: Path, args: argparse.Namespace) -> dict[str, float]:
    """The command; seconds of its stages, and of the whole."""
    wish = ("--method", method_of(args.importance), "--importance", args.importance, "--ratio", "0.3")
    where = ("--dataset", rows, "--num-samples", str(args.rows), "--repair", "none", "--device", "cpu", "--overwrite")
    words = ("--model", model, output, *wish, *where)
    whole = seconds_of(lambda: subprocess.run([PROGRAM, "mllm-prune", *words], check=True, stdout=subprocess.DEVNULL))
    return json.loads((output / "pruning_report.json").read_text())["timings_seconds"] | {"whole": whole}


def ratios_of(stages: Mapping[str, float], floor: Mapping[str, float]) -> dict[str, float]:
    """What the command took in multiples of its floor, with and without the verification, which the floor lacks."""
    bare = sum(floor[name] for name in ("start", "read", "passes", "write"))
    verified = stages.get("reference", 0) + stages["verification"]
    return {"whole": stages["whole"] / bare, "without verification": (stages["whole"] - verified) / bare}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--importance", default="taylor", help="block_influence, or one of width")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=85, help="of a row, of which its image takes 64")
    parser.add_argument("--turns", type=int, default=3, help="each with other weights and rows; medians count")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model, output, rows = (Path(scratch) / name for name in ("model", "out", "rows"))
        turns = []
        for turn in range(args.turns):
            random_model(args.layers, args.width, seed=turn).save_pretrained(model)
            adapted_processor().save_pretrained(model)
            write_rows(rows, model, args.rows, args.tokens, turn)
            stages = pruned(model, output, rows, args)
            floor = {"start": started(), "read": read(model)}
            floor |= {"passes": passes(model, rows, args.importance, args.rows)}
            floor |= {"write": written(output, Path(scratch)), "read again": read(output)}
            turns.append((stages, floor))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    stages, floor = (
        {name: statistics.median(turn[i][name] for turn in turns) for name in turns[0][i]} for i in (0, 1)
    )
    print("stages, s:", told(stages))
    print("floor, s:", told(floor))
    ratios = [ratios_of(*turn) for turn in turns]
    for name in ratios[0]:
        found = sorted(ratio[name] for ratio in ratios)
        print(f"{name} / floor: {statistics.median(found):.2f} ({found[0]:.2f} - {found[-1]:.2f})")
    print(f"largest resident set of any process: {peak:.2f} GB")


if __name__ == "__main__":
    main()
