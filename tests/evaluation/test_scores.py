"""Scores of predictions, beside a baseline and by category."""

import math

import pytest

from optimum_mllm_prune.evaluation.generation import Answer
from optimum_mllm_prune.evaluation.likelihood import Likelihood
from optimum_mllm_prune.evaluation.predictions import Predictions
from optimum_mllm_prune.evaluation.scores import scored


def said(texts, nats=()):
    return Predictions([Answer(text, tuple(map(ord, text))) for text in texts], [Likelihood(n, 2) for n in nats])


RIGHT = [["7"], ["red"], ["no"], ["3"]]
OURS, THEIRS = said(["7", "blue", "no", "4"], [1, 2, 3, 4]), said(["7", "red", "no", "4"], [1, 1, 1, 1])


def test_alone():
    score = scored("exact_match", OURS, RIGHT)
    assert (score.metric, score.rows, score.unit, score.higher_is_better) == ("exact_match", 4, "percent", True)
    assert score.value.value == 50
    assert 0 <= score.value.low < 50 < score.value.high <= 100
    assert score.baseline is score.retained is score.test is None
    assert score.groups == {}


def test_beside_a_baseline_it_is_a_ratio_of_means():
    score = scored("exact_match", OURS, RIGHT, THEIRS)
    assert score.baseline.value == 75
    assert score.retained.value == pytest.approx(100 * 50 / 75)
    assert score.test.difference == -25
    assert score.test.p_value == 1


def test_perplexity():
    score = scored("answer_perplexity", OURS, RIGHT, THEIRS)
    assert score.value.value == pytest.approx(math.exp(10 / 8))
    assert score.baseline.value == pytest.approx(math.exp(4 / 8))
    assert not score.higher_is_better
    # More of it is worse: nothing is retained.
    assert score.retained is None
    assert score.test.difference > 0


def test_agreement_has_no_baseline_of_its_own():
    score = scored("token_agreement", OURS, RIGHT, THEIRS)
    letters = [("7", "7"), ("blue", "red"), ("no", "no"), ("4", "4")]
    equal = sum(a == b for one, two in letters for a, b in zip(one, two, strict=False))
    assert score.value.value == pytest.approx(100 * equal / sum(max(len(a), len(b)) for a, b in letters))
    assert score.baseline is None


def test_categories_in_order_of_appearance():
    score = scored("exact_match", OURS, RIGHT, THEIRS, ["b", "a", "b", "a"])
    assert list(score.groups) == ["b", "a"]
    assert [(group.rows, group.value.value, group.baseline) for group in score.groups.values()] == [
        (2, 100, 100),
        (2, 0, 50),
    ]


def test_the_seed_decides_the_interval():
    many = said(["7"] * 40, [0.1 * i for i in range(1, 41)])
    again = [scored("answer_perplexity", many, [["7"]] * 40, seed=seed).value for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_values_of_one_name_are_one_category():
    score = scored("exact_match", OURS, RIGHT, THEIRS, [1, "1", "2", 2])
    assert {name: group.rows for name, group in score.groups.items()} == {"1": 2, "2": 2}
    nothing = scored("exact_match", OURS, RIGHT, THEIRS, [math.nan] * 4)
    assert nothing.groups["nan"].rows == 4
