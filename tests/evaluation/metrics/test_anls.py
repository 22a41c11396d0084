from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.evaluation.metrics import METRICS


anls = METRICS["anls"]()
words = st.text("abC ", max_size=8)


def naive(answer, references):
    """The official script: 1 - the smallest distance / longer length, 0 below a half."""

    @cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    def normalized(reference):
        a, b = (" ".join(text.strip().lower().split()) for text in (answer, reference))
        return distance(a, b) / max(len(a), len(b)) if a or b else 0.0

    similarity = 1 - min(map(normalized, references))
    return similarity if similarity >= 0.5 else 0.0


@given(words, st.lists(words, min_size=1, max_size=3))
def test_it_is_the_official_score(answer, references):
    assert anls.score(answer, references) == pytest.approx(naive(answer, references))


@given(words, words)
def test_it_is_symmetric_and_zero_or_at_least_a_half(first, second):
    score = anls.score(first, [second])
    assert score == anls.score(second, [first])
    assert score == 0 or 0.5 <= score <= 1
    assert anls.score(first, [first]) == 1


@pytest.mark.parametrize(
    "answer, references, expected",
    [
        ("University of California", ["university  of california"], 1),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("kitten", ["sitting", "mitten"], 1 - 1 / 6),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0),
        ("", ["a"], 0),
        ("", [""], 1),
    ],
)
def test_examples(answer, references, expected):
    assert anls.score(answer, references) == pytest.approx(expected)


def test_rows_are_averaged_in_percent():
    found = anls.compute(predictions=["abcd", "abcd", "kitten"], references=[["abcd"], ["xyz"], ["mitten"]])
    assert found == {"anls": pytest.approx(100 * (1 + 0 + 5 / 6) / 3)}
