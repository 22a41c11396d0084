import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.evaluation.metrics import METRICS


token_agreement = METRICS["token_agreement"]()
tokens = st.lists(st.integers(0, 3), max_size=5)
pairs = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=4)


def agreement(pairs):
    first, second = zip(*pairs, strict=True)
    return token_agreement._compute(first, second)["token_agreement"]


@given(pairs)
def test_it_counts_positions_one_by_one(pairs):
    same, positions = 0, 0
    for first, second in pairs:
        for i in range(max(len(first), len(second))):
            positions += 1
            same += i < len(first) and i < len(second) and first[i] == second[i]
    assert agreement(pairs) == (pytest.approx(100 * same / positions) if positions else 100)


@given(pairs)
def test_it_is_symmetric_in_range_and_full_for_the_same_tokens(pairs):
    assert agreement(pairs) == agreement([(second, first) for first, second in pairs])
    assert 0 <= agreement(pairs) <= 100
    assert agreement([(first, first) for first, _ in pairs]) == 100


def test_the_longer_tail_disagrees():
    found = token_agreement.compute(predictions=[[5, 6, 7, 8], [1]], references=[[5, 6], [1]])
    assert found == {"token_agreement": pytest.approx(60)}


def test_a_shift_disagrees_from_there_on():
    assert agreement([([1, 2, 3, 4], [1, 3, 4])]) == 25
