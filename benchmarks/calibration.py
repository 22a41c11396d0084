"""What calibration costs against the floor: one forward, or one forward and one backward, of the same batches.

    python benchmarks/calibration.py

Every variant runs in a process of its own, on the same random LLaVA and batch; times are medians of interleaved
repeats, and only their ratios to the floor mean anything. Memory is the peak above the loaded model, as a share of the
backbone's weights: `naive taylor` keeps all gradients until the backward pass ends, as `loss.backward()` does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from apart import measured_apart
from random_models import random_model, text_batch
from transformers import PreTrainedModel

from optimum_mllm_prune.backbone import Backbone, with_layouts
from optimum_mllm_prune.calibration.batches import Batch
from optimum_mllm_prune.calibration.engine import answer_loss, evaluating, run_calibration
from optimum_mllm_prune.calibration.progress import Progress
from optimum_mllm_prune.checkpoint import peak_memory
from optimum_mllm_prune.importance import METRICS, Subject


METHODS = {
    "block_influence": "layer",
    "activation": "width",
    "wanda": "width",
    "reconstruction": "width",
    "taylor_group": "width",
    "taylor": "width",
}
FLOORS = {"forward": "forward", "forward and backward": "forward and backward", "naive taylor": "forward and backward"}
FLOORS |= dict.fromkeys(("block_influence", "activation", "wanda", "reconstruction"), "forward")
FLOORS |= dict.fromkeys(("taylor_group", "taylor"), "forward and backward")


def runner(name: str, model: PreTrainedModel, batch: Batch) -> Callable[[], None]:
    """One calibration pass of a variant."""
    if name == "forward":
        return lambda: _forward(model, batch)
    if name in ("forward and backward", "naive taylor"):
        # The floor differentiates activations only; the naive way keeps every weight's gradient as well.
        model.requires_grad_(name == "naive taylor")
        return lambda: _backward(model, batch)
    backbone = Backbone.of(model)
    groups = tuple(with_layouts(group, model) for group in backbone.groups()[0])
    metric = METRICS[name][METHODS[name]]
    subject = Subject(model, backbone.layers_prefix, groups, 0)

    def calibrate() -> None:
        observer = metric.create(subject)
        if metric.needs == "rows":
            with evaluating(model), torch.no_grad():
                observer.run([batch], Progress())
            observer.scores()
            return
        layers, backward = subject.layers, metric.needs == "backward"
        run_calibration(model, [batch], [observer], layers, backward)
        observer.scores()

    return calibrate


def measure(name: str, args: argparse.Namespace) -> None:
    """Print seconds of each repeat and the peak above the loaded model."""
    torch.set_num_threads(args.threads)
    model, batch = random_model(args.layers, args.width), text_batch(args.rows, args.tokens)
    backbone_bytes = 4 * Backbone.of(model).backbone_parameters
    run = runner(name, model, batch)
    loaded = peak_memory()["cpu"]
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = peak_memory()["cpu"] - loaded
    print(json.dumps({"seconds": seconds, "peak": peak / backbone_bytes}))


def _forward(model: PreTrainedModel, batch: Batch) -> None:
    with torch.no_grad():
        model(**batch.inputs, logits_to_keep=1)


def _backward(model: PreTrainedModel, batch: Batch) -> None:
    model.zero_grad(set_to_none=True)
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, out: _differentiable(out))
    answer_loss(model, batch).backward()
    handle.remove()


def _differentiable(states: torch.Tensor) -> torch.Tensor:
    return states if states.requires_grad else states.requires_grad_(True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=list(FLOORS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        measure(args.variant, args)
        return
    found: dict[str, dict] = {name: {"seconds": [], "peak": 0.0} for name in FLOORS}
    for _ in range(2):
        for name in FLOORS:
            one = measured_apart("--variant", name)
            found[name]["seconds"] += one["seconds"]
            found[name]["peak"] = max(found[name]["peak"], one["peak"])
    print("| pass | time / floor | peak memory above the model / backbone weights |\n|---|---|---|")
    for name, figures in found.items():
        ratio = statistics.median(figures["seconds"]) / statistics.median(found[FLOORS[name]]["seconds"])
        print(f"| {name} | {ratio:.2f} x {FLOORS[name]} | {figures['peak']:.2f} |")


if __name__ == "__main__":
    main()
