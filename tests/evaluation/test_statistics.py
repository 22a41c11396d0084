import math
import tracemalloc
import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.evaluation.metrics import METRICS
from optimum_mllm_prune.evaluation.statistics import bootstrap_interval, paired_test, retained_interval


accuracy = METRICS["exact_match"]().value
f1 = METRICS["yes_no_f1"]().value
perplexity = METRICS["answer_perplexity"]().value

FEW = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=7)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def answered(right):
    """Contributions of answers that are right or not."""
    return np.stack([np.asarray(right, dtype=np.float64), np.ones(len(right))], axis=1)


def losses(rows, seed=0):
    """Contributions to a perplexity."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 6, rows)
    return np.stack([random.gamma(2.0, 0.5, rows) * tokens, tokens], axis=1)


def some_f1(rows, seed):
    """Half of the rows are yes, and 85 % of either kind are answered right."""
    random = np.random.default_rng(seed)
    true, right = random.random(rows) < 0.5, random.random(rows) < 0.85
    return counted(true == right, true)


def counted(said, true):
    """Contributions to an F1."""
    return np.stack([said & true, said & ~true, ~said & ~true, ~said & true, said & ~said], axis=1).astype(np.float64)


# The mean of gamma(2, 0.5), the nats of a token, is 1.
TRUTHS = {
    "accuracy": (lambda seed: answered(np.random.default_rng(seed).random(200) < 0.8), accuracy, 80),
    "f1": (lambda seed: some_f1(200, seed), f1, 85),
    "perplexity": (lambda seed: losses(200, seed), perplexity, math.e),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_the_interval_covers_the_truth_as_often_as_it_says(name):
    draw, value, truth = TRUTHS[name]
    covered = 0
    for seed in range(400):
        interval = bootstrap_interval(draw(seed), value, resamples=999, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_of_what_is_retained_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        before = random.random(200) < 0.6
        after = random.random(200) < np.where(before, 0.8, 0.15)
        interval = retained_interval(answered(before), answered(after), accuracy, resamples=999, seed=seed)
        covered += interval.low <= 100 * (0.6 * 0.8 + 0.4 * 0.15) / 0.6 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_there_are_bounds_where_few_rows_differ():
    true = np.arange(100) < 2
    interval = bootstrap_interval(counted(true, true), f1)
    assert (interval.low, interval.value, interval.high) == (0, 100, 100)


def test_it_is_as_wide_as_theory_says():
    interval = bootstrap_interval(answered(np.arange(1000) < 800), accuracy)
    assert interval.value == 80
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.8 * 0.2 / 1000), rel=0.05)


def test_it_is_what_a_naive_bootstrap_gives():
    contributions = losses(20)
    random = np.random.default_rng(1)
    draws = [contributions[random.integers(0, 20, 20)].sum(axis=0) for _ in range(4000)]
    expected = np.percentile([math.exp(nats / tokens) for nats, tokens in draws], [2.5, 97.5])
    interval = bootstrap_interval(contributions, perplexity)
    assert [interval.low, interval.high] == pytest.approx(expected, rel=0.02)


def test_less_confidence_is_narrower():
    wide, narrow = (bootstrap_interval(losses(50), perplexity, confidence) for confidence in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert (wide.confidence, narrow.confidence) == (0.95, 0.5)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=9))
def test_the_bounds_of_an_f1_are_in_range(rows):
    said, true = (np.array(column) for column in zip(*rows, strict=True))
    interval = bootstrap_interval(counted(said, true), f1, resamples=199)
    assert 0 <= interval.low <= interval.high <= 100


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("rows", [2, 3, 10])
def test_equal_rows_have_an_interval_of_one_point(right, rows):
    interval = bootstrap_interval(answered([right] * rows), accuracy)
    assert interval.low == interval.value == interval.high == 100 * right


def test_equal_losses_have_an_interval_of_one_point():
    interval = bootstrap_interval(np.tile([0.3, 7.0], (10, 1)), perplexity)
    assert interval.low == interval.value == interval.high


def test_one_row_says_nothing_of_others():
    interval = bootstrap_interval(answered([True]), accuracy)
    assert interval.value == 100
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_no_row_is_refused():
    with pytest.raises(UserInputError, match=r"^There is no row to draw from: measure at least one.$"):
        bootstrap_interval(np.empty((0, 2)), accuracy)


def test_the_same_seed_gives_the_same_and_another_one_nearly():
    first, again, other = (bootstrap_interval(losses(50), perplexity, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert other.low == pytest.approx(first.low, rel=0.02)


def test_retained_performance_takes_the_same_rows_of_both_models():
    random = np.random.default_rng(0)
    before = random.random(500) < 0.6
    after = before & (random.random(500) < 0.9)
    interval = retained_interval(answered(before), answered(after), accuracy)
    assert interval.value == pytest.approx(100 * after.sum() / before.sum())
    # What is retained is a share of the rows that were right before: as if only those had been drawn.
    inside = bootstrap_interval(answered(after[before]), accuracy)
    assert [interval.low, interval.high] == pytest.approx([inside.low, inside.high], abs=0.5)


def test_a_model_retains_all_of_itself():
    for contributions, value in ((losses(30), perplexity), (answered([True, True, False] * 10), accuracy)):
        interval = retained_interval(contributions, contributions, value)
        assert [interval.low, interval.value, interval.high] == [100, 100, 100]


def test_nothing_can_be_retained_of_nothing():
    interval = retained_interval(answered([False] * 5), answered([True] * 5), accuracy)
    assert all(map(math.isnan, (interval.value, interval.low, interval.high)))


def test_where_too_many_resamples_find_nothing_to_retain_there_are_no_bounds():
    interval = retained_interval(answered([True, False, False]), answered([True, False, False]), accuracy)
    assert interval.value == 100
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_a_rare_resample_that_finds_nothing_to_retain_is_left_out():
    # Of 9,999 resamples some 50 hold none of the 5 right answers of the original model.
    right = np.arange(60) < 5
    interval = retained_interval(answered(right), answered(right & (np.arange(60) < 3)), accuracy)
    assert interval.value == pytest.approx(60)
    assert 0 <= interval.low < 60 < interval.high <= 100


def naive_p(first, second, value):
    """Share of all exchanges of rows after which the values differ as much."""
    observed = abs(value(second.sum(0)) - value(first.sum(0)))
    differences = []
    for exchanged in product([False, True], repeat=len(first)):
        chosen = np.array(exchanged)[:, None]
        one, other = np.where(chosen, second, first), np.where(chosen, first, second)
        differences.append(abs(value(other.sum(0)) - value(one.sum(0))))
    return np.mean(np.array(differences) >= observed - 1e-9)


@settings(max_examples=50)
@given(FEW)
def test_p_of_accuracies_is_that_of_all_exchanges_and_of_mcnemar(rows):
    first, second = (np.array(column) for column in zip(*rows, strict=True))
    found = paired_test(answered(first), answered(second), accuracy)
    assert found.exact
    assert found.p_value == pytest.approx(naive_p(answered(first), answered(second), accuracy))
    apart, worse = int((first != second).sum()), int((first & ~second).sum())
    assert found.p_value == pytest.approx(binomtest(worse, apart).pvalue if apart else 1)


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_p_of_f1_and_of_perplexity_is_that_of_all_exchanges(rows, seed):
    random = np.random.default_rng(seed)
    said, true = random.random((2, rows)) < 0.5, random.random(rows) < 0.5
    # The same answers, so as many tokens in both.
    surprised = [losses(rows, seed), losses(rows, seed) * [1.5, 1.0]]
    for (first, second), value in (([counted(each, true) for each in said], f1), (surprised, perplexity)):
        found = paired_test(first, second, value)
        assert found.difference == pytest.approx(float(value(second.sum(0)) - value(first.sum(0))))
        assert found.p_value == pytest.approx(naive_p(first, second, value))


def test_a_sample_of_exchanges_comes_near_all_of_them_and_never_to_zero():
    random = np.random.default_rng(0)
    first, second = answered(random.random(60) < 0.7), answered(random.random(60) < 0.5)
    found = paired_test(first, second, accuracy)
    apart = int((first != second).any(axis=1).sum())
    assert not found.exact
    assert found.p_value == pytest.approx(binomtest(int((first[:, 0] > second[:, 0]).sum()), apart).pvalue, abs=0.02)
    assert paired_test(answered([True] * 60), answered([False] * 60), accuracy).p_value == 1 / 10_000


def test_it_agrees_with_scipy_on_a_mean():
    first, second = losses(12, seed=1), losses(12, seed=2)
    first[:, 1] = second[:, 1] = 1
    data = (first[:, 0], second[:, 0])
    expected = permutation_test(data, lambda a, b, axis: b.mean(axis) - a.mean(axis), permutation_type="samples")
    assert paired_test(first, second, accuracy).p_value == pytest.approx(expected.pvalue)


@given(FEW)
def test_exchanging_the_models_turns_the_difference_and_keeps_p(rows):
    first, second = (answered(column) for column in zip(*rows, strict=True))
    there, back = paired_test(first, second, accuracy), paired_test(second, first, accuracy)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value


def test_equal_models_do_not_differ():
    found = paired_test(losses(100), losses(100), perplexity)
    assert (found.difference, found.p_value, found.exact) == (0, 1, True)


def test_models_that_are_alike_seldom_have_a_small_p():
    found = [paired_test(losses(40, seed), losses(40, seed + 1000), perplexity, resamples=199) for seed in range(200)]
    small = np.mean([each.p_value <= 0.1 for each in found])
    assert 0.05 <= small <= 0.15


@pytest.mark.parametrize("compare", [retained_interval, paired_test])
def test_two_models_need_the_same_rows(compare):
    message = r"^One model has 3 rows and the other 2: measure both on the same, with one metric.$"
    with pytest.raises(UserInputError, match=message):
        compare(answered([True] * 3), answered([True] * 2), accuracy)


def test_ten_thousand_rows_take_bounded_memory():
    first, second = losses(10_000), losses(10_000, seed=1)
    tracemalloc.start()
    bootstrap_interval(first, perplexity, resamples=1000)
    paired_test(first, second, perplexity, resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All draws at once would be 80 MB of numbers of rows and as much again of their contributions.
    assert peak < 120e6
