"""What `recovery_study.py` measures once: the floor of guessing, the stability of scores, the speed of models."""

import statistics
import time
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import torch
from study_runs import THE_PAPERS, Settings, data, original, pruned

from optimum_mllm_prune import MLLMPruner, PruningConfig, PruningPlan
from optimum_mllm_prune.calibration.encoding import conversation_of, encode
from optimum_mllm_prune.calibration.rows import open_rows
from optimum_mllm_prune.evaluation import exact_match, reference_answers


STABILITY_SAMPLES = (5, 10, 20, 50)


def guessing(settings: Settings) -> dict[str, float]:
    """What is right when every question, whatever the image, gets the answer that is most frequent for its kind."""
    splits = data(settings, 0)
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, answer in zip(splits["train"]["kind"], reference_answers(splits["train"]), strict=True):
        asked[kind][answer] += 1
    guesses = [asked[kind].most_common(1)[0][0] for kind in splits["test"]["kind"]]
    return {"exact_match": exact_match(guesses, reference_answers(splits["test"]))}


def stability(settings: Settings) -> list[dict[str, Any]]:
    """How alike scores of two seeds are: mean over pairs of five seeds, by method and number of calibration rows."""
    model, processor = original()
    pruner, rows, found = MLLMPruner(model, processor), data(settings, 0)["train"], []
    for method in settings.methods:
        for samples in STABILITY_SAMPLES:
            made = []
            for seed in range(5):
                config = PruningConfig(
                    method=method, importance=THE_PAPERS[method], ratio=0.3, seed=seed, num_samples=samples
                )
                plan = pruner.plan(config, rows)
                made.append((pruner.scores.tensors, plan))
            kinds = ["layers"] if method == "layer" else ["heads", "channels"]
            for kind in kinds:
                pairs = list(combinations(made, 2))
                ranks = [rank_correlation(one[kind], other[kind]) for (one, _), (other, _) in pairs]
                overlaps = [overlap(removed(one, kind), removed(other, kind)) for (_, one), (_, other) in pairs]
                found.append(
                    {
                        "method": method,
                        "kind": kind,
                        "samples": samples,
                        "rank_correlation": statistics.mean(ranks),
                        "overlap": 100 * statistics.mean(overlaps),
                    }
                )
    return found


def speed(settings: Settings) -> list[dict[str, Any]]:
    """CPU seconds per row of answering (prompt and 16 new tokens, batches of 16), interleaved medians."""
    cells = [("original", 0.0), *((method, ratio) for ratio in settings.ratios for method in settings.methods)]
    models = [original()[0] if m == "original" else pruned(settings, m, ratio, 0)[0] for m, ratio in cells]
    rows = open_rows(data(settings, 0)["test"])[:16]
    prompts = [conversation_of({**row, "messages": row["messages"][:-1]}) for row in rows]
    batch = encode(original()[1], prompts, add_generation_prompt=True, padding_side="left")
    seconds: list[list[float]] = [[] for _ in cells]
    for _ in range(settings.rounds + 1):
        for model, found in zip(models, seconds, strict=True):
            start = time.process_time()
            model.eval().generate(**batch, do_sample=False, min_new_tokens=16, max_new_tokens=16)
            found.append((time.process_time() - start) / 16)
    return [
        {
            "method": method,
            "ratio": ratio,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            # The first round warms up.
            "seconds_per_row": statistics.median(found[1:]),
        }
        for (method, ratio), model, found in zip(cells, models, seconds, strict=True)
    ]


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's, of the scores within a layer, mean over layers; of the layers where they are scored themselves."""
    ranks = [scores.argsort(-1).argsort(-1).double() for scores in (one, other)]
    if one.ndim == 1:
        return torch.corrcoef(torch.stack(ranks))[0, 1].item()
    return statistics.mean(torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(*ranks, strict=True))


def removed(plan: PruningPlan, kind: str) -> set[Any]:
    """What a plan removes of a kind."""
    if kind == "layers":
        return set(plan.removed_layers)
    units = plan.removed_heads if kind == "heads" else plan.removed_channels
    return {(block, unit) for block, removed_units in units.items() for unit in removed_units}


def overlap(one: set[Any], other: set[Any]) -> float:
    """Share of one set that is in the other, both equally large."""
    return len(one & other) / len(one) if one else 1.0
