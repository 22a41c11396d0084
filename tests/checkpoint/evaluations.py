"""Evaluations as real objects: made-up answers by the real metrics, made-up measurements in the real reports."""

from __future__ import annotations

import math

from optimum_mllm_prune.evaluation.efficiency import EfficiencyReport
from optimum_mllm_prune.evaluation.efficiency.cache_size import CacheSize
from optimum_mllm_prune.evaluation.efficiency.comparison import compare
from optimum_mllm_prune.evaluation.efficiency.cost import Cost
from optimum_mllm_prune.evaluation.efficiency.memory import Memory
from optimum_mllm_prune.evaluation.efficiency.size import PARTS, Size
from optimum_mllm_prune.evaluation.efficiency.speed import Speed, Timing
from optimum_mllm_prune.evaluation.generation import Answer
from optimum_mllm_prune.evaluation.likelihood import Likelihood
from optimum_mllm_prune.evaluation.predictions import Predictions
from optimum_mllm_prune.evaluation.report import EvaluationReport
from optimum_mllm_prune.evaluation.scores import scored
from optimum_mllm_prune.evaluation.tasks import TaskScore


COMMAND = "optimum-cli mllm-eval --model small --baseline large --dataset me/rows --by kind --efficiency"
METRICS = ("exact_match", "answer_perplexity", "yes_no_f1", "token_agreement")
RIGHT = [["yes"], ["no"], ["yes"], ["no"]]
# A category as somebody may call one.
KINDS = ["a | b", "<i>x", "a | b", "<i>x"]


def evaluation(command=COMMAND, model="small", baseline="large", quality=True, efficiency=True, tasks=True, **changes):
    """As plain data; parts may be left out, as a command may."""
    roles = {"baseline": 1.0, "model": 0.7} if baseline else {"model": 0.7}
    report = EvaluationReport(
        model=model,
        baseline=baseline,
        dataset={"name": "me/rows", "split": "test", "rows": 4, "seed": 42, "by": "kind"} if quality else None,
        quality=_quality(baseline) if quality else [],
        tasks={role: [_task(role)] for role in roles} if tasks else {},
        efficiency=_efficiency(roles, model, baseline) if efficiency else {},
        settings={"batch_size": 16, "max_new_tokens": 48, "dtype": "auto"},
        seconds=12.3,
        command=command,
        versions={"optimum_mllm_prune": "0.1.0", "torch": "2.13.0"},
    )
    return report.to_dict() | changes


def _quality(baseline):
    ours, theirs = _said(["yes", "yes", "no", "no"], [0.5, 2, 3, 1]), _said(["yes", "no", "yes", "no"], [0.5, 1, 1, 1])
    metrics = METRICS if baseline else METRICS[:3]
    return [scored(metric, ours, RIGHT, theirs if baseline else None, KINDS) for metric in metrics]


def _said(texts, nats):
    return Predictions([Answer(text, tuple(map(ord, text))) for text in texts], [Likelihood(n, 2) for n in nats])


def _task(role):
    value, error = (0.5, 0.02) if role == "baseline" else (0.4, math.nan)
    return TaskScore("mmmu_val", "acc,none", value, error, True, 900, "0.0")


def _efficiency(roles, model, baseline):
    costs = {
        role: Cost(80, 64, int(4e8 * size), int(5e6 * size), CacheSize(5120, {}, 0)) for role, size in roles.items()
    }
    speeds = {role: _speed(size) for role, size in roles.items()}
    pairs = [tuple(found[role] for role in ("baseline", "model")) for found in (costs, speeds)] if baseline else ()
    compared = {1: compare(*pairs, 1, 32), 8: None} if baseline else {}
    return {
        role: EfficiencyReport(
            name={"model": model, "baseline": baseline}[role],
            baseline=baseline if role == "model" else None,
            inputs="image + text",
            new_tokens=32,
            size=Size(int(3e6 * size), int(6e6 * size), dict.fromkeys(PARTS, int(1e6 * size)), None),
            cost=costs[role],
            speed={1: speeds[role], 8: None},
            speedup=compared if role == "model" else {},
            memory=Memory("process", 500_000_000, int(500e6 + 6e6 * size), {1: int(500e6 + 9e6 * size), 8: None}),
            notes=["Memory did not suffice for 8 rows at once."],
            environment={"device": "cpu", "dtype": "bfloat16", "threads": 1},
        )
        for role, size in roles.items()
    }


def _speed(size):
    first, rate = Timing(0.01 * size, 0.009 * size, 0.02 * size), Timing(300 / size, 250 / size, 320 / size)
    return Speed(first, rate, first, rate)
