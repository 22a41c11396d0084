from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optimum_mllm_prune.evaluation.metrics import METRICS


relaxed_accuracy = METRICS["relaxed_accuracy"]()
numbers = st.decimals(-1000, 1000, places=2)


@given(numbers, numbers)
def test_numbers_may_be_off_by_a_twentieth_of_the_reference(answer, target):
    assume(target != 0)
    off = abs(answer - target) / abs(target)
    assume(off != Decimal("0.05"))
    assert relaxed_accuracy.score(str(answer), [str(target)]) == (off < Decimal("0.05"))


@pytest.mark.parametrize(
    "answer, target, expected",
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-100", "100", 0),
        ("1e2", "100", 1),
        ("5%", "0.05", 1),
        ("5.2%", "5%", 1),
        ("5", "5%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("0.001", "0", 0),
        ("Blue ", "blue", 1),
        ("dark blue", "blue", 0),
        ("100", "hundred", 0),
        ("nan", "NaN", 1),
        ("inf", "100", 0),
        ("100", "inf", 0),
        ("%", "%", 1),
        ("", "blue", 0),
    ],
)
def test_examples(answer, target, expected):
    assert relaxed_accuracy.score(answer, [target]) == expected


def test_the_nearest_reference_counts():
    found = relaxed_accuracy.compute(predictions=["98", "red"], references=[["50", "100"], ["blue"]])
    assert found == {"relaxed_accuracy": 50}
