"""The main job on the embedded model: prune digit scenes by width and by layers, and measure before and after.

    python examples/demo.py OUTPUT

Everything is done as a user would do it: the dataset folder is written, `optimum-cli mllm-prune` is called, and the
checkpoints are loaded with transformers alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune.commands.summary import aligned
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers, retained


HERE = Path(__file__).parent / "digit_scenes"
ORIGINAL = HERE / "llava"
# Lies in every folder that this script has made, which it may then empty.
MARK = "made_by_demo.txt"
RUNS = {
    "width": ["--method", "width"],
    "width, not repaired": ["--method", "width", "--repair", "none"],
    "width, taylor": ["--method", "width", "--importance", "taylor"],
    "width, taylor, not repaired": ["--method", "width", "--importance", "taylor", "--repair", "none"],
    "width, random": ["--method", "width", "--importance", "random"],
    "layers": ["--method", "layer"],
    "width and hidden size": ["--method", "mixed", "--hidden-share", "0.25"],
}


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        name: what was done.
        removed: share of the language backbone's parameters, in percent.
        parameters: of the whole model.
        size: bytes of the weights on disk.
        accuracy: exact match, in percent.
        pruning: seconds of the whole command, verification included.
        answering: seconds to answer all rows.
    """

    name: str
    removed: float
    parameters: int
    size: int
    accuracy: float
    pruning: float
    answering: float


def prune(name: str, options: list[str], ratio: float, output: Path) -> tuple[Path, float]:
    """Call the real command; returns the checkpoint's folder and the seconds it took."""
    folder = output / name.replace(", ", "-").replace(" ", "_")
    command = [Path(sysconfig.get_path("scripts")) / "optimum-cli", "mllm-prune", "--model", ORIGINAL, folder]
    command += [*options, "--ratio", str(ratio), "--dataset", output / "data"]
    print("\n$", " ".join(Path(word).name if Path(word).is_absolute() else str(word) for word in command), flush=True)
    start = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True)
    return folder, time.perf_counter() - start


def measure(name: str, folder: Path, rows: Dataset, pruning: float) -> Result:
    """Exact match on held-out rows, and what the checkpoint weighs."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    start = time.perf_counter()
    answers = generate_answers(model, processor, rows)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors") if "scores" not in file.name)
    parameters = sum(p.numel() for p in model.parameters())
    accuracy = exact_match(answers, reference_answers(rows))
    return Result(name, removed_share(folder), parameters, size, accuracy, pruning, seconds)


def removed_share(folder: Path) -> float:
    """Percent of the backbone's parameters that the checkpoint's own report says are gone; 0 without a report."""
    report = folder / "pruning_report.json"
    return 100 * json.loads(report.read_text())["ratio"]["achieved"] if report.is_file() else 0.0


def table(results: list[Result]) -> str:
    """Before and after, side by side."""
    first = results[0]
    lines = [("", "removed", "parameters", "MB", "accuracy", "retained", "prune, s", "answer, s")]
    for result in results:
        lines.append(
            (
                result.name,
                f"{result.removed:.1f} %",
                f"{result.parameters:,}",
                f"{result.size / 1e6:.2f}",
                f"{result.accuracy:.1f} %",
                f"{retained(result.accuracy, first.accuracy):.1f} %",
                f"{result.pruning:.1f}" if result.pruning else "",
                f"{result.answering:.1f}",
            )
        )
    return aligned(lines)


def emptied(folder: Path) -> Path:
    """The folder, new or emptied. A folder that this script did not make is left alone, and the script ends."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MARK).is_file())):
        sys.exit(f"'{folder}' was not made by this script and would be emptied: name another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("examples/demo.py empties this folder when it is run again.\n")
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for data and checkpoints; one of an earlier run is emptied")
    parser.add_argument("--ratio", type=float, default=0.45, help="share of the backbone to remove (default 0.45)")
    parser.add_argument("--test-rows", type=int, default=800, help="held-out rows to answer (default 800)")
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which ways to prune (default all)"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    emptied(args.output)
    scenes = [sys.executable, str(HERE / "scenes.py"), str(args.output / "data")]
    subprocess.run([*scenes, "--train", "400", "--test", str(args.test_rows)], check=True)
    rows = load_from_disk(args.output / "data")["test"]
    results = [measure("original", ORIGINAL, rows, 0.0)]
    for name in args.runs:
        folder, seconds = prune(name, RUNS[name], args.ratio, args.output)
        results.append(measure(name, folder, rows, seconds))
    print(f"\nDigit scenes, {len(rows)} held-out rows, exact match by greedy generation:\n\n{table(results)}")
    (args.output / "results.json").write_text(json.dumps([vars(r) for r in results], indent=2) + "\n")
    print(f"\nThe checkpoints lie in {args.output}/; each loads with AutoModelForImageTextToText.from_pretrained.")


if __name__ == "__main__":
    main()
