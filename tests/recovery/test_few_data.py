"""Draws of a few rows."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.recovery.few_data import draw_few


sizes = st.integers(1, 60)
seeds = st.integers(0, 1000)
fractions = st.floats(0.01, 1)


@given(sizes, seeds)
def test_all_rows_without_a_wish(size, seed):
    assert draw_few(size, seed=seed) == list(range(size))


@given(sizes, fractions, seeds)
def test_a_fraction_is_that_share_and_at_least_one(size, fraction, seed):
    drawn = draw_few(size, fraction, seed=seed)
    assert len(drawn) == max(1, round(fraction * size))
    assert drawn == sorted(set(drawn)) and set(drawn) <= set(range(size))


@given(sizes, fractions, st.integers(1, 80), seeds)
def test_a_number_limits_a_fraction(size, fraction, most, seed):
    drawn = draw_few(size, fraction, most, seed)
    assert len(drawn) == min(most, max(1, round(fraction * size)))


@given(sizes, fractions, fractions, seeds)
def test_fewer_are_part_of_more(size, one, other, seed):
    few, many = (draw_few(size, fraction, seed=seed) for fraction in sorted((one, other)))
    assert set(few) <= set(many)


@given(sizes, fractions, seeds)
def test_the_seed_decides(size, fraction, seed):
    assert draw_few(size, fraction, seed=seed) == draw_few(size, fraction, seed=seed)


def test_another_seed_draws_others():
    assert draw_few(1000, 0.1, seed=1) != draw_few(1000, 0.1, seed=2)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.data(), seeds)
def test_strata_keep_their_shares(strata, data, seed):
    number = data.draw(st.integers(1, len(strata)))
    drawn = draw_few(len(strata), max_samples=number, seed=seed, strata=strata)
    assert len(set(drawn)) == len(drawn) == number and drawn == sorted(drawn)
    sizes, taken = Counter(strata), Counter(strata[row] for row in drawn)
    if number >= len(sizes):
        assert taken.keys() == sizes.keys()
    # One row each comes first, which moves a share by at most one row a stratum.
    for stratum, size in sizes.items():
        assert abs(taken[stratum] - number * size / len(strata)) <= len(sizes)


def test_strata_of_very_different_size():
    strata = ["many"] * 970 + ["some"] * 29 + ["one"]
    taken = Counter(strata[row] for row in draw_few(1000, 0.1, strata=strata))
    assert taken == {"many": 96, "some": 3, "one": 1}


def test_as_far_as_the_number_reaches():
    assert len({"abc"[row] for row in draw_few(3, max_samples=2, strata="abc")}) == 2


def test_strata_may_be_anything_that_hashes():
    strata = [True, False, True, None, (1, 2), None]
    assert draw_few(6, strata=strata) == list(range(6))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(UserInputError, match=r"fraction must lie in \(0, 1\] \(0.05 takes 5 % of the rows\), got"):
        draw_few(10, fraction)


@pytest.mark.parametrize("number", [0, -3])
def test_a_number_out_of_range(number):
    with pytest.raises(UserInputError, match=f"max_samples must be at least 1, got {number}"):
        draw_few(10, max_samples=number)
