"""One cell of `zero_shot_study.py`: a model pruned one way, to one ratio, with one seed, and what it answers."""

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from paper_width import masked_copy, paper_removal
from study_runs import MODEL, original, scenes
from transformers import PreTrainedModel
from zero_shot_variants import Variant

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.backbone.skeleton import count_backbone_parameters, count_parameters
from optimum_mllm_prune.evaluation import generate_answers, reference_answers
from optimum_mllm_prune.importance import Scores


MODELS = ("llava", "llava_gqa")
RATIOS = (0.15, 0.3, 0.45, 0.6)
TRAIN_ROWS = 1000
# Keys of a config that certainly change nothing in the scores.
_AFTER_SCORING = {"ratio", "layer_share", "head_share", "channel_multiple", "allow_twin", "repair", "repair_samples"}
_CODE = Path(__file__).parents[1] / "optimum_mllm_prune"


@dataclass(frozen=True)
class Cell:
    """What is measured together. Without a variant it is the original.

    Attributes:
        model: name of a digit-scenes model.
        variant: how it is pruned.
        ratio: share of the language backbone to remove.
        seed: of calibration: which rows, and every choice at random.
        test_rows: held-out rows that are answered.
    """

    model: str
    variant: Variant | None = None
    ratio: float = 0.0
    seed: int = 0
    test_rows: int = 560

    @property
    def name(self) -> str:
        """In words."""
        if self.variant is None:
            return f"{self.model}, original"
        return f"{self.model}, {self.variant.name}, {100 * self.ratio:g} %, seed {self.seed}"

    @property
    def config(self) -> dict[str, Any] | None:
        """Keys of its `PruningConfig`."""
        return None if self.variant is None else dict(self.variant.config) | {"ratio": self.ratio, "seed": self.seed}

    @property
    def key(self) -> str:
        """All that determines the outcome but the code, as JSON."""
        whole = {} if self.variant is None else {kind: list(ends) for kind, ends in self.variant.whole.items()}
        found = {"model": self.model, "weights": fingerprint(self.model), "config": self.config, "whole": whole}
        return json.dumps(found | {"train_rows": TRAIN_ROWS, "test_rows": self.test_rows}, sort_keys=True)


def cells(
    models: Sequence[str], variants: Sequence[Variant], ratios: Sequence[float], seeds: int, test_rows: int
) -> list[Cell]:
    """All of them, one seed after the other: a study that is broken off says something of everything."""
    pruned = [Cell(m, v, r, s, test_rows) for s in range(seeds) for m in models for v in variants for r in ratios]
    return [Cell(model, test_rows=test_rows) for model in models] + pruned


def measure(cell: Cell) -> dict[str, Any]:
    """Prune and answer; what this version refuses is said in `refused`."""
    start = time.perf_counter()
    line = {"key": cell.key, "name": cell.name, "code": code_digest()}
    try:
        model, parameters, removed = pruned(cell)
    except UserInputError as error:
        return line | {"refused": str(error)}
    test = test_split(cell.test_rows)
    answers = generate_answers(model, original(MODEL.parent / cell.model)[1], test, batch_size=80)
    right = [answer == reference for answer, reference in zip(answers, reference_answers(test), strict=True)]
    return line | {
        "exact_match": 100 * sum(right) / len(right),
        "removed": removed,
        "parameters": parameters,
        "right": "".join(map(str, map(int, right))),
        "seconds": round(time.perf_counter() - start, 2),
    }


def pruned(cell: Cell) -> tuple[PreTrainedModel, int, float]:
    """The pruned model, parameters that the whole of it has, and the share of the backbone that was removed.

    Raises:
        UserInputError: this version cannot prune so.
    """
    model, processor = original(MODEL.parent / cell.model)
    whole, before = count_parameters(model), count_backbone_parameters(model)
    if cell.variant is None:
        return model, whole, 0.0
    config = PruningConfig(**cell.config)
    if cell.variant.whole:
        backbone = MLLMPruner(model, processor).backbone()
        removal = paper_removal(backbone, scores_of(cell.model, config), cell.ratio, cell.variant.whole)
        return masked_copy(model, backbone, removal), whole - removal.parameters, removal.ratio
    pruner, rows = MLLMPruner(copy.deepcopy(model), processor), train_split()
    if cell.variant.shares_scores:
        smaller = pruner.prune(pruner.plan(config, rows, scores_of(cell.model, config)), rows)
    else:
        smaller = pruner.prune(config, rows)
    return smaller, count_parameters(smaller), 1 - count_backbone_parameters(smaller) / before


def scores_of(model: str, config: PruningConfig) -> Scores:
    """Scores of a model, from one calibration for all configs that differ in nothing that it depends on."""
    asked = {key: value for key, value in config.to_dict().items() if key not in _AFTER_SCORING}
    return _scores(model, json.dumps(asked, sort_keys=True))


@cache
def _scores(model: str, asked: str) -> Scores:
    pruner = MLLMPruner(*original(MODEL.parent / model))
    return pruner.score(PruningConfig.from_dict(json.loads(asked)), train_split())


@cache
def train_split() -> Dataset:
    """Rows that calibration draws from."""
    return scenes.build(TRAIN_ROWS, 1)["train"]


@cache
def test_split(rows: int) -> Dataset:
    """Held-out rows, kind by kind: rows that are answered together have answers of like length."""
    test = scenes.build(1, rows)["test"]
    return test.select(sorted(range(rows), key=lambda row: test["kind"][row]))


@cache
def fingerprint(model: str) -> str:
    """Of a model's config and weights."""
    return _digest(sorted((MODEL.parent / model).iterdir()))


@cache
def code_digest() -> str:
    """Of the package and of the paper's method as they are now."""
    return _digest([*sorted(_CODE.rglob("*.py")), Path(__file__).with_name("paper_width.py")])


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
