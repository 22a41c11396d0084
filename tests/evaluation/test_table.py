"""An evaluation on the screen: what is not known is a dash, and nothing else is."""

from optimum_mllm_prune.evaluation.generation import Answer
from optimum_mllm_prune.evaluation.likelihood import Likelihood
from optimum_mllm_prune.evaluation.predictions import Predictions
from optimum_mllm_prune.evaluation.report import EvaluationReport
from optimum_mllm_prune.evaluation.scores import scored
from optimum_mllm_prune.evaluation.table import quality_rows, task_rows
from optimum_mllm_prune.evaluation.tasks import TaskScore


def said(texts, nats):
    return Predictions([Answer(text, ()) for text in texts], [Likelihood(n, 1) for n in nats])


OURS, THEIRS, RIGHT = said("ab", [1, 1]), said("xy", [2, 2]), [["a"], ["b"]]


def test_nothing_is_retained_of_nothing_or_of_what_is_better_small():
    lines = quality_rows([scored(name, OURS, RIGHT, THEIRS) for name in ("exact_match", "answer_perplexity")])
    retained = lines[0].index("retained")
    assert [line[retained] for line in lines[1:]] == ["-", "-"]
    assert [line[0] for line in lines[1:]] == ["exact_match", "answer_perplexity"]


def test_benchmarks():
    def task(metric, value, better=True):
        return TaskScore("vqa", metric, value, None, better, 10, None)

    own = [task("acc", 0.25), task("zero", 0.5), task("loss", 3.0, better=False), task("new", 1.0)]
    other = [task("acc", 0.5), task("zero", 0.0), task("loss", 2.0, better=False)]
    report = EvaluationReport("a", "b", None, [], {"model": own, "baseline": other}, {}, {}, 0.0, None)
    assert [line[1:] for line in task_rows(report)[1:]] == [
        ("acc", "10", "0.25", "0.5", "50.0 %"),
        ("zero", "10", "0.5", "0", "-"),
        ("loss", "10", "3", "2", "-"),
        ("new", "10", "1", "-", "-"),
    ]
