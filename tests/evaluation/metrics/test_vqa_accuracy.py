from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.evaluation.metrics import METRICS
from optimum_mllm_prune.evaluation.metrics.vqa_normalization import normalize_answer


vqa_accuracy = METRICS["vqa_accuracy"]()


@pytest.mark.parametrize("matches, expected", [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_the_table_of_vqa_v2(matches, expected):
    # One match: 9 of 10 subsets hold it and give 1/3; three: 7 subsets give 1 and 3 give 2/3.
    people = ["red"] * matches + [f"other {i}" for i in range(10 - matches)]
    found = vqa_accuracy.compute(predictions=["red"], references=[people])
    assert found == {"vqa_accuracy": pytest.approx(expected)}


@given(st.lists(st.sampled_from(["red", "blue", "Two", "2"]), min_size=4, max_size=11), st.sampled_from(["red", "2"]))
def test_it_is_the_mean_over_all_subsets_that_leave_one_out(people, answer):
    subsets = list(combinations([normalize_answer(person) for person in people], len(people) - 1))
    naive = sum(min(subset.count(answer) / 3, 1) for subset in subsets) / len(subsets)
    assert vqa_accuracy.score(answer, people) == pytest.approx(naive)


@given(st.permutations(["red", "red", "blue", "green", "3", "three"]))
def test_the_order_of_people_does_not_matter(people):
    # Two of six agree: four subsets give 2/3 and two give 1/3.
    assert vqa_accuracy.score("3", people) == pytest.approx((4 * 2 / 3 + 2 / 3) / 6)


@pytest.mark.parametrize("references", [["two dogs"], ["a dog", "2 dogs"], ["2 dogs", "two dogs", "cats"]])
def test_few_references_are_a_plain_match(references):
    assert vqa_accuracy.score("The two dogs.", references) == 1
    assert vqa_accuracy.score("three dogs", references) == 0


def test_capitals_do_not_matter_where_all_people_agree():
    assert vqa_accuracy.score("Yes.", ["yes"] * 10) == 1


# What the official script gives.
@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Two  dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("a cat, a dog", "cat dog"),
        ("black,white", "black white"),
        ("1,000,red-hot", "1000redhot"),
        ("x-ray", "x ray"),
        ("left - right", "left right"),
        ("left- x-ray", "left xray"),
        ("3.5 m.", "3.5 m"),
        ("U.S.A", "usa"),
        (".5", ".5"),
        ("yes!", "yes"),
        ("(no)", "no"),
        ("don't", "don't"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("oclock", "o'clock"),
        ("'ows'at", "'ow's'at"),
        ("it's", "it's"),
        ("its", "its"),
        ("one\ntwo\tthree", "1 2 3"),
        ("one\n, two", "1 2"),
        ("", ""),
        ("the", ""),
    ],
)
def test_texts_are_normalized_as_prescribed(text, expected):
    assert normalize_answer(text) == expected


@given(st.text(max_size=20))
def test_words_come_out_lower_with_single_blanks(text):
    words = normalize_answer(text).split(" ")
    assert all(word == word.lower() and word not in ("a", "an", "the") for word in words)
    assert words == [""] or all(words)
