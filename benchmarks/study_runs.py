"""One run of `recovery_study.py`: prune, recover, answer the test rows. And which runs there are."""

import copy
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin


sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digit_scenes"))

import scenes
from study_results import FULL_RATE, RATE

from optimum_mllm_prune import MLLMPruner, PruningConfig, PruningPlan
from optimum_mllm_prune.evaluation import exact_match_by_group, generate_answers, reference_answers
from optimum_mllm_prune.recovery.arguments import RecoveryArguments
from optimum_mllm_prune.recovery.trainer import RecoveryTrainer


MODEL = Path(__file__).parents[1] / "examples" / "digit_scenes" / "llava"
METHODS = ("layer", "width")
THE_PAPERS = {"layer": "block_influence", "width": "taylor"}
RATIOS = (0.15, 0.3, 0.45, 0.6)
SHARES = (0.05, 0.1, 0.2)
CORE = ("none", "sft", "sft+hidden", "projector")
RECIPES = {
    "none": {},
    "projector": {"train": "projector", "loss": "sft+hidden"},
    "sft": {"loss": "sft"},
    "kd": {"loss": "kd"},
    "reverse kd": {"loss": "kd", "divergence": "reverse_kl"},
    "hidden": {"loss": "hidden"},
    "sft+kd": {"loss": "sft+kd"},
    "sft+hidden": {"loss": "sft+hidden"},
    "sft+hidden+kd": {"loss": "sft+hidden+kd"},
    "full": {"train": "full", "loss": "sft+hidden"},
}
OTHER_RATES = (3e-4, 3e-3)


@dataclass(frozen=True)
class Settings:
    """How large the study is. Results of other settings are never mixed with these."""

    ratios: tuple[float, ...] = RATIOS
    methods: tuple[str, ...] = METHODS
    recipes: tuple[str, ...] = tuple(RECIPES)
    shares: tuple[float, ...] = SHARES
    seeds: int = 3
    train_rows: int = 1280
    test_rows: int = 560
    batch_size: int = 16
    passes: int = 2
    least_steps: int = 80
    rounds: int = 9


QUICK = Settings((0.3,), ("layer",), ("none", "sft"), (), 1, 32, 16, passes=1, least_steps=2, rounds=1)


@dataclass(frozen=True)
class Run:
    """One pruned model, recovered one way."""

    method: str
    ratio: float
    recipe: str
    share: float = 1.0
    seed: int = 0
    rate: float = RATE

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.method}-{100 * self.ratio:.0f}-{self.recipe}-{100 * self.share:.0f}-{self.rate:g}-s{self.seed}"


def grid(settings: Settings) -> list[Run]:
    """All runs, those that tell most first: a study that is broken off says something."""
    cells = [(method, ratio) for ratio in settings.ratios for method in settings.methods]
    first = [cell for cell in reversed(cells) if cell[1] in (0.3, 0.6)]
    rest = [cell for cell in cells if cell not in first]
    others = [recipe for recipe in settings.recipes if recipe not in (*CORE, "full")]
    fewest, more = settings.shares[:1], settings.shares[1:]
    runs = [Run("original", 0.0, "none"), *_rates(settings), *_core(cells, fewest, 0)]
    for some in (first, rest):
        runs += [Run(*cell, recipe) for recipe in others for cell in some]
        runs += [Run(*cell, "sft+hidden", share) for share in more for cell in some]
        if some is first:
            runs += [Run(*cell, "full", rate=FULL_RATE) for cell in some]
            runs += _core(cells, fewest, 1)
    for seed in range(2, settings.seeds):
        runs += _core(cells, fewest, seed)
    return [run for run in runs if run.recipe in settings.recipes and run.seed < settings.seeds]


def _core(cells: Sequence[tuple[str, float]], shares: Sequence[float], seed: int) -> list[Run]:
    full = [Run(*cell, recipe, seed=seed) for recipe in CORE for cell in cells]
    return full + [Run(*cell, "sft+hidden", share, seed) for share in shares for cell in cells]


def _rates(settings: Settings) -> list[Run]:
    if settings == QUICK:
        return []
    return [Run("layer", 0.3, "sft", rate=rate) for rate in OTHER_RATES]


@cache
def original(folder: Path = MODEL) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The unpruned model in float32, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@cache
def data(settings: Settings, seed: int) -> DatasetDict:
    """Training rows of a seed; the test rows are the same for every seed."""
    return scenes.build(settings.train_rows, settings.test_rows, seed)


@cache
def pruned(settings: Settings, method: str, ratio: float, seed: int) -> tuple[PreTrainedModel, PruningPlan]:
    """A pruned model. Width removes what whole layers can: both methods are compared at equal size."""
    model, processor = original()
    pruner = MLLMPruner(copy.deepcopy(model), processor)
    if method == "width":
        one_layer = pruner.plan(PruningConfig(num_layers=1, importance="magnitude")).ratio["achieved"]
        ratio = round(ratio / one_layer) * one_layer
    plan = pruner.plan(
        PruningConfig(method=method, importance=THE_PAPERS[method], ratio=ratio, seed=seed),
        data(settings, seed)["train"],
    )
    return pruner.prune(plan), plan


def epochs(settings: Settings, share: float) -> int:
    """Passes over the rows: more over few of them."""
    steps = max(1, round(share * settings.train_rows) // settings.batch_size)
    return max(settings.passes, math.ceil(settings.least_steps / steps))


def recovered(settings: Settings, run: Run, model: PreTrainedModel) -> tuple[PreTrainedModel, float]:
    """A trained copy of the model, and the mean loss of its training."""
    teacher, processor = original()
    with tempfile.TemporaryDirectory() as scratch:
        args = RecoveryArguments(
            output_dir=scratch,
            **RECIPES[run.recipe],
            learning_rate=run.rate,
            fraction=run.share,
            num_train_epochs=epochs(settings, run.share),
            per_device_train_batch_size=settings.batch_size,
            seed=run.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = data(settings, run.seed)["train"]
        trainer = RecoveryTrainer(copy.deepcopy(model), teacher, args, rows, processing_class=processor)
        loss = trainer.train().training_loss
        return trainer.plain_model(), loss


def measure(settings: Settings, run: Run) -> dict[str, Any]:
    """Prune, recover and answer the test rows."""
    start, plan, loss = time.perf_counter(), None, None
    model, processor = original()
    if run.method != "original":
        model, plan = pruned(settings, run.method, run.ratio, run.seed)
    if run.recipe != "none":
        model, loss = recovered(settings, run, model)
    test = data(settings, 0)["test"]
    answers, references = generate_answers(model, processor, test), reference_answers(test)
    return asdict(run) | {
        "exact_match": exact_match_by_group(answers, references, ["all"] * len(test))["all"],
        "by_kind": exact_match_by_group(answers, references, test["kind"]),
        "achieved": plan.ratio["achieved"] if plan else 0.0,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": loss,
        "seconds": time.perf_counter() - start,
    }
