"""What a distillation step costs: our losses in chunks, against the naive ones and against the floor.

    python benchmarks/distillation.py

The loss is sft + hidden + kd. `naive` makes the logits of every token for student and teacher and leaves the rest to
autograd. `floor` is what no distillation can avoid: forward and backward of the student with a plain cross entropy on
the answer tokens, and forward of the teacher with its logits at the same tokens. The first half of every row is
prompt, the second half answer. Everything trains, head and embeddings included, in fp32.

Every variant runs in a process of its own, in turns; times are medians over all turns, of the process' CPU time, which
others on the machine disturb less; memory is the peak above the loaded models, weight gradients included.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from apart import measured_apart
from random_models import random_model, text_batch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.batches import Batch
from optimum_mllm_prune.checkpoint import peak_memory
from optimum_mllm_prune.recovery.objective import BatchObjective
from optimum_mllm_prune.recovery.recipe import Recipe, loss_weights
from optimum_mllm_prune.recovery.tap import Tap
from optimum_mllm_prune.recovery.teachers.live import LiveTeacher
from optimum_mllm_prune.recovery.tokens import counts


RECIPE = Recipe(loss_weights("sft+hidden+kd"))
STUDENT_SHARE = 0.75


def ours(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Callable[[], float]:
    """The step as `RecoveryTrainer` makes it."""
    tap = Tap(student, student.get_submodule(Backbone.of(student).layers_prefix))
    live = LiveTeacher(teacher)

    def step() -> float:
        guidance = live.guide(batch.inputs, batch.modality, torch.arange(len(batch.labels)), RECIPE)
        objective = BatchObjective(RECIPE, batch.labels, batch.modality, counts(batch.modality), guidance)
        loss, _ = objective(tap(**batch.inputs))
        loss.backward()
        return loss.item()

    return step


def naive(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Callable[[], float]:
    """All logits of both, the same loss by autograd."""
    kept = batch.labels[:, 1:] != -100

    def step() -> float:
        with torch.no_grad():
            expected = teacher(**batch.inputs, output_hidden_states=True, use_cache=False)
        found = student(**batch.inputs, output_hidden_states=True, use_cache=False)
        sft = functional.cross_entropy(found.logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten())
        own, other = (
            functional.log_softmax(outputs.logits[:, :-1].float() / RECIPE.temperature, dim=-1)
            for outputs in (found, expected)
        )
        divergence = functional.kl_div(own, other, reduction="none", log_target=True).sum(dim=-1)[kept].mean()
        states = [outputs.hidden_states[-1][:, :-1][kept] for outputs in (found, expected)]
        hidden = functional.mse_loss(*states)
        terms = {"sft": sft, "logits": RECIPE.temperature**2 * divergence, "hidden": hidden}
        loss = sum(RECIPE.weight(name) * term for name, term in terms.items())
        loss.backward()
        return loss.item()

    return step


def floor(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Callable[[], float]:
    """Student forward and backward with a plain cross entropy, teacher forward; logits of answer tokens alone."""
    kept = batch.labels[:, 1:] != -100

    def answers(model: PreTrainedModel) -> Tensor:
        states = model.model(**batch.inputs, use_cache=False).last_hidden_state
        return model.lm_head(states[:, :-1][kept])

    def step() -> float:
        with torch.no_grad():
            answers(teacher)
        loss = functional.cross_entropy(answers(student), batch.labels[:, 1:][kept])
        loss.backward()
        return loss.item()

    return step


VARIANTS = {"floor": floor, "naive": naive, "ours": ours}


def measure(name: str, vocabulary: int, args: argparse.Namespace) -> None:
    """Print the loss, the seconds of each repeat and the peak above the loaded models."""
    torch.set_num_threads(args.threads)
    teacher = random_model(args.layers, args.width, vocabulary).requires_grad_(False)
    student = random_model(round(STUDENT_SHARE * args.layers), args.width, vocabulary).train()
    batch = text_batch(args.rows, args.tokens, vocabulary)
    step = VARIANTS[name](student, teacher, batch)
    loaded = peak_memory()["cpu"]
    seconds = []
    for _ in range(args.repeats):
        student.zero_grad(set_to_none=True)
        start = time.process_time()
        loss = step()
        seconds.append(time.process_time() - start)
    # The first step also pays for memory that the allocator has not yet seen.
    print(json.dumps({"loss": loss, "seconds": seconds[1:], "peak": peak_memory()["cpu"] - loaded}))


def compare(vocabulary: int, turns: int) -> dict[str, dict]:
    """All variants in turns."""
    found: dict[str, dict] = {name: {"seconds": [], "peak": 0} for name in VARIANTS}
    for _ in range(turns):
        for name, figures in found.items():
            one = measured_apart("--variant", name, "--vocabulary", vocabulary)
            figures["loss"] = one["loss"]
            figures["seconds"] += one["seconds"]
            figures["peak"] = max(figures["peak"], one["peak"])
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 152_000])
    parser.add_argument("--layers", type=int, default=4, help="of the teacher; the student has three quarters of them")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="steps in each process, the first not counted")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        measure(args.variant, args.vocabulary, args)
        return
    print("| vocabulary | step | loss | CPU seconds | time / floor | peak memory, MB | memory / naive |")
    print("|---|---|---|---|---|---|---|")
    for vocabulary in args.vocabularies:
        found = compare(vocabulary, args.turns)
        seconds = {name: statistics.median(figures["seconds"]) for name, figures in found.items()}
        for name, figures in found.items():
            time_ratio, memory_ratio = seconds[name] / seconds["floor"], figures["peak"] / found["naive"]["peak"]
            print(
                f"| {vocabulary:,} | {name} | {figures['loss']:.4f} | {seconds[name]:.2f} | {time_ratio:.2f} "
                f"| {figures['peak'] / 1e6:,.0f} | {memory_ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
