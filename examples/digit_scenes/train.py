"""Trains the two digit-scenes models, on one core of a current CPU in about half an hour.

    python train.py OUTPUT

writes OUTPUT/llava (8 key-value heads) and OUTPUT/llava_gqa (4, mean-pooled from the first and trained a little
further, arXiv 2305.13245), in bfloat16, with their processor, and prints the accuracy on test rows. What is written is
refreshed every 250 steps; `--variant llava_gqa` goes on from an OUTPUT/llava that is there.
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
SCENES_A_TOWER_STEP = 64
QUESTIONS_A_SCENE = 8
SAVE_EVERY = 250
# Captions teach the model to see; the kinds that need most practice are asked most.
SEEING = ["caption", "caption", "read", "colour", "exists", "read", "count", "sum"]
ASKING = ["caption", "read", "colour", "count", "exists", "sum", "compare"]
HARD = ["caption", "exists", "sum", "sum", "compare"]


def train_tower(model: LlavaForConditionalGeneration, steps: int, rate: float, rng: np.random.Generator) -> None:
    """Teach the vision tower what stands in each cell (the digit and its colour, or nothing), then freeze it."""
    tower = model.model.vision_tower
    width = 4 * tower.config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, 11), nn.Linear(width, len(COLOURS) + 1)])
    for _ in _stepping(nn.ModuleList([tower, heads]), steps, rate, "vision tower"):
        scenes = draw_scenes(SCENES_A_TOWER_STEP, rng)
        guesses = _cell_logits(tower, heads, pixels(scenes, augment=True))
        sum(cross_entropy(guess, cells) for guess, cells in zip(guesses, _cells(scenes), strict=True)).backward()
    scenes = draw_scenes(1000, rng, split="test")
    with torch.no_grad():
        guesses = _cell_logits(tower, heads, pixels(scenes, augment=False))
    for name, guess, cells in zip(("digit", "colour"), guesses, _cells(scenes), strict=True):
        print(f"Vision tower, held-out cells, {name}: {100 * (guess.argmax(-1) == cells).float().mean():.2f} %")
    tower.requires_grad_(False)


def train_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    steps: int,
    rate: float,
    rng: np.random.Generator,
    save: Path,
    seeing: float = 0.15,
) -> None:
    """Teach projector and backbone to answer; the first share `seeing` of the steps is mostly captions."""
    running = 0.0
    for step, bar in enumerate(_stepping(model, steps, rate, save.name)):
        pool = SEEING if step < seeing * steps else ASKING + HARD
        kinds = list(rng.permutation(pool)[:QUESTIONS_A_SCENE])
        packed = pack(draw_scenes(SCENES_A_STEP, rng), kinds, processor.tokenizer, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(*logits(model, packed))
        loss.backward()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        bar.set_postfix(loss=f"{running:.3f}")
        if (step + 1) % SAVE_EVERY == 0:
            save_both(model, processor, save)
    save_both(model, processor, save)


def grouped(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The same model with 4 key-value heads: each the mean of two neighbours."""
    smaller = parts.model(processor.tokenizer, key_value_heads=4)
    head_dim = smaller.config.text_config.head_dim
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")) and "language_model" in name:
            state[name] = tensor.view(4, 2, head_dim, -1).mean(dim=1).flatten(0, 1)
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


def _optimizers(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, where it needs fewer steps than AdamW; AdamW for everything else."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in trained if parameter.ndim == 2 and "layers." in name]
    others = [parameter for name, parameter in trained if parameter.ndim != 2 or "layers." not in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: warm-up, then cosine."""
    warm = min(100, steps // 10)
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))
    return min((step + 1) / (warm + 1), cosine + 0.01)


def _stepping(module: nn.Module, steps: int, rate: float, name: str) -> Iterator[tqdm]:
    """The loop body computes gradients, the generator steps."""
    optimizers = _optimizers(module, rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: _rate_at(step, steps)) for one in optimizers]
    for _ in (bar := tqdm(range(steps), desc=name, mininterval=10)):
        yield bar
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        module.zero_grad(set_to_none=True)


def _cell_logits(tower: nn.Module, heads: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """For every head (cells of all images in reading order, classes); a cell is 2 x 2 patches."""
    with torch.autocast("cpu", torch.bfloat16):
        seen = tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]
        cells = seen.view(len(images), 2, 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(len(images) * 4, -1)
        return [head(cells).float() for head in heads]


def _cells(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Digit and colour of every cell; the class after the last one is an empty cell."""
    digits = [[s[p].value if p in s else 10 for p in POSITIONS] for s in scenes]
    names = list(COLOURS)
    colours = [[names.index(s[p].colour) if p in s else len(names) for p in POSITIONS] for s in scenes]
    return torch.tensor(digits).flatten(), torch.tensor(colours).flatten()


def _train_first(args: argparse.Namespace, processor: LlavaProcessor) -> None:
    rng = np.random.default_rng(0)
    model = parts.model(processor.tokenizer, key_value_heads=8)
    train_tower(model, args.tower_steps, args.tower_rate, rng)
    train_answers(model, processor, args.steps, args.rate, rng, args.output / "llava")


def _train_grouped(args: argparse.Namespace, processor: LlavaProcessor) -> None:
    first = AutoModelForImageTextToText.from_pretrained(args.output / "llava", dtype=torch.float32)
    rng, folder = np.random.default_rng(1), args.output / "llava_gqa"
    train_answers(grouped(first, processor), processor, args.grouped_steps, args.rate / 3, rng, folder, seeing=0.0)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write the two models to")
    parser.add_argument("--variant", choices=["both", "llava", "llava_gqa"], default="both", help="what to train")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the first model (default 2000)")
    parser.add_argument("--grouped-steps", type=int, default=400, help="further steps of the second (default 400)")
    parser.add_argument("--tower-steps", type=int, default=2500, help="steps of the vision tower (default 2500)")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="peak learning rate (default 0.0025)")
    parser.add_argument("--tower-rate", type=float, default=2e-3, help="of the vision tower (default 0.002)")
    parser.add_argument("--test", type=int, default=1600, help="test rows (default 1600)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    processor = parts.processor()
    if args.variant != "llava_gqa":
        _train_first(args, processor)
    if args.variant != "llava":
        _train_grouped(args, processor)
    for name in ("llava", "llava_gqa") if args.variant == "both" else (args.variant,):
        print(name, {kind: round(share, 2) for kind, share in evaluate(args.output / name, args.test).items()})


if __name__ == "__main__":
    main()
