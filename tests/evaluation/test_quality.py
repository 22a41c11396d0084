import math

import pytest

from optimum_mllm_prune.evaluation import exact_match, exact_match_by_group, retained


def test_exact_match_counts_equal_texts():
    assert exact_match(["7", "red", "Yes", "12"], ["7", "red", "yes", "1"]) == 50


def test_exact_match_without_references_is_an_error():
    with pytest.raises(ValueError, match="no reference"):
        exact_match([], [])


def test_answers_and_references_must_be_as_many():
    with pytest.raises(ValueError):
        exact_match(["7"], ["7", "8"])


def test_groups_are_scored_apart_in_order_of_appearance():
    found = exact_match_by_group(["7", "a", "8", "b"], ["7", "a", "9", "c"], ["sum", "read", "sum", "count"])
    assert found == {"sum": 50, "read": 100, "count": 0}
    assert list(found) == ["sum", "read", "count"]


def test_groups_weigh_up_to_the_whole():
    answers, references, groups = list("aabbcc"), list("aabxcx"), list("112223")
    by_group = exact_match_by_group(answers, references, groups)
    whole = sum(by_group[group] * groups.count(group) for group in by_group) / len(groups)
    assert whole == pytest.approx(exact_match(answers, references))


def test_retained_is_a_share_in_percent():
    assert retained(72.0, 96.0) == pytest.approx(75)


def test_nothing_can_be_retained_of_nothing():
    assert math.isnan(retained(0.0, 0.0))
    assert math.isnan(retained(5.0, 0.0))
    assert retained(0.0, 5.0) == 0
