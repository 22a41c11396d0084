"""Trains the two digit-scenes models: about an hour on two cores.

    python train.py OUTPUT

writes OUTPUT/llava (8 key-value heads) and OUTPUT/llava_gqa (4, mean-pooled from the first and trained a little
further, arXiv 2305.13245), in bfloat16, with their processor, and prints the accuracy on test rows.
"""

import argparse
import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import parts
import torch
from packing import draw_scenes, logits, pack, pixels
from scenes import COLOURS, POSITIONS, Scene, build
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from optimum_mllm_prune.evaluation import exact_match, exact_match_by_group, generate_answers, reference_answers


SCENES_A_STEP = 24
QUESTIONS_A_SCENE = 8
# Captions teach the model to see; the kinds that need most practice are asked most.
SEEING = ["caption", "caption", "read", "colour", "locate", "read", "count", "sum"]
ASKING = ["caption", "read", "colour", "count", "exists", "sum", "compare", "locate"]
HARD = ["exists", "exists", "sum", "compare"]


def train_tower(model: LlavaForConditionalGeneration, steps: int, rng: np.random.Generator) -> None:
    """Teach the vision tower what stands in each cell: the digit and its colour, or nothing."""
    tower = model.model.vision_tower
    width = tower.config.hidden_size
    heads = nn.ModuleList([nn.Linear(4 * width, 11), nn.Linear(4 * width, len(COLOURS) + 1)])
    parameters = [*tower.parameters(), *heads.parameters()]
    for _ in _stepping(parameters, steps, 2e-3, "vision tower"):
        scenes = draw_scenes(64, rng)
        seen = tower(pixels(scenes, augment=True), output_hidden_states=True).hidden_states[-1][:, 1:]
        cells = seen.view(len(scenes), 2, 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(len(scenes) * 4, -1)
        loss = sum(
            cross_entropy(head(cells), target) for head, target in zip(heads, _cell_targets(scenes), strict=True)
        )
        loss.backward()
    model.model.vision_tower.requires_grad_(False)


def train_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    steps: int,
    rate: float,
    rng: np.random.Generator,
    save: Path,
    seeing: float = 0.2,
) -> None:
    """Teach projector and backbone to answer; the first share `seeing` of the steps is mostly captions."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    running = 0.0
    for step, bar in enumerate(_stepping(parameters, steps, rate, save.name)):
        pool = SEEING if step < seeing * steps else ASKING + HARD
        kinds = list(rng.permutation(pool)[:QUESTIONS_A_SCENE])
        predicted, target = logits(model, pack(draw_scenes(SCENES_A_STEP, rng), kinds, processor.tokenizer, rng))
        loss = cross_entropy(predicted, target)
        loss.backward()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        bar.set_postfix(loss=f"{running:.3f}")
        if step % 500 == 499:
            save_both(model, processor, save)


def grouped(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The same model with 4 key-value heads: each the mean of two neighbours."""
    smaller = parts.model(processor.tokenizer, key_value_heads=4)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")) and "language_model" in name:
            state[name] = tensor.view(4, 2, 20, -1).mean(dim=1).flatten(0, 1)
    smaller.load_state_dict(state)
    smaller.model.vision_tower.requires_grad_(False)
    return smaller


def evaluate(folder: Path, rows: int) -> dict[str, float]:
    """Exact match by kind, in percent, of a saved model on test rows."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    test = build(train=8, test=rows)["test"]
    answers = generate_answers(model, processor, test)
    expected = reference_answers(test)
    return {"all": exact_match(answers, expected), **exact_match_by_group(answers, expected, test["kind"])}


def save_both(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Save model, in bfloat16, and processor."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)


def _stepping(parameters: list[nn.Parameter], steps: int, rate: float, name: str) -> Iterator[tqdm]:
    """AdamW with warm-up and cosine; the loop body computes gradients, the generator steps."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = min(100, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(
            (s + 1) / (warm + 1), 0.5 * (1 + math.cos(math.pi * max(0, s - warm) / max(1, steps - warm))) + 0.01
        ),
    )
    for _ in (bar := tqdm(range(steps), desc=name, mininterval=10)):
        yield bar
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()


def _cell_targets(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    digits = [[s[p].value if p in s else 10 for p in POSITIONS] for s in scenes]
    names = list(COLOURS)
    colours = [[names.index(s[p].colour) if p in s else len(names) for p in POSITIONS] for s in scenes]
    return torch.tensor(digits).flatten(), torch.tensor(colours).flatten()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write the two models to")
    parser.add_argument("--steps", type=int, default=4000, help="steps of the first model (default 4000)")
    parser.add_argument("--grouped-steps", type=int, default=800, help="further steps of the second (default 800)")
    parser.add_argument("--tower-steps", type=int, default=1500, help="steps of the vision tower (default 1500)")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate (default 0.0015)")
    parser.add_argument("--test", type=int, default=1600, help="test rows (default 1600)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    processor = parts.processor()
    model = parts.model(processor.tokenizer, key_value_heads=8)
    train_tower(model, args.tower_steps, rng)
    train_answers(model, processor, args.steps, args.rate, rng, args.output / "llava")
    save_both(model, processor, args.output / "llava")
    smaller = grouped(model, processor)
    train_answers(smaller, processor, args.grouped_steps, args.rate / 3, rng, args.output / "llava_gqa", seeing=0.0)
    save_both(smaller, processor, args.output / "llava_gqa")
    for name in ("llava", "llava_gqa"):
        print(name, {k: round(v, 2) for k, v in evaluate(args.output / name, args.test).items()})


if __name__ == "__main__":
    main()
