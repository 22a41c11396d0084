import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.evaluation.metrics import METRICS


yes_no_f1 = METRICS["yes_no_f1"]()


def pope(text):
    """POPE's reading of an answer: the first sentence, commas gone, words apart at blanks."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def read(answer):
    return "yes" if yes_no_f1.contributions([answer], [["yes"]])[0, 0] else "no"


PIECES = ["Yes", "yes", "No", "no", "not", "nothing", "there is", "dog", ",", ". "]


@given(st.lists(st.sampled_from(PIECES), max_size=6), st.sampled_from([" ", ""]))
def test_answers_are_read_as_pope_reads_them(pieces, between):
    answer = between.join(pieces)
    assert read(answer) == pope(answer)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Yes", "yes"),
        ("No, there is no dog.", "no"),
        ("There is not a dog in the image.", "no"),
        ("Yes. There is no cat.", "yes"),
        ("Nothing", "yes"),
        ("", "yes"),
        ("NO", "no"),
        ("No\nASSISTANT", "no"),
    ],
)
def test_examples_of_answers(answer, expected):
    assert read(answer) == expected


def test_a_case_by_hand():
    predictions = ["Yes", "Yes, a dog.", "Yes", "No", "No", "maybe", "no", "yes"]
    references = [["yes"], ["Yes"], ["no"], ["yes."], ["No"], ["no"], ["no", "No."], ["yes"]]
    # 3 true positives, 2 false (one of them "maybe"), 2 true negatives, 1 missed.
    assert yes_no_f1.compute(predictions=predictions, references=references) == pytest.approx(
        {
            "yes_no_f1": 100 * 6 / 9,
            "accuracy": 62.5,
            "precision": 60,
            "recall": 75,
            "yes_ratio": 62.5,
            "unclear_ratio": 12.5,
        }
    )


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no"])), min_size=1, max_size=12))
def test_all_figures_are_those_of_scikit_learn(rows):
    said, true = ([answer == "yes" for answer in column] for column in zip(*rows, strict=True))
    found = yes_no_f1._compute([answer for answer, _ in rows], [[answer] for _, answer in rows])
    expected = {
        "yes_no_f1": f1_score(true, said, zero_division=0),
        "accuracy": accuracy_score(true, said),
        "precision": precision_score(true, said, zero_division=0),
        "recall": recall_score(true, said, zero_division=0),
        "yes_ratio": sum(said) / len(said),
        "unclear_ratio": 0,
    }
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


@pytest.mark.parametrize("references", [["a dog"], ["yes", "no"], [""]])
def test_references_that_are_neither_are_refused(references):
    message = r"^The references of row 1 are not all yes or all no: choose another metric than yes_no_f1.$"
    with pytest.raises(UserInputError, match=message):
        yes_no_f1.contributions(["yes", "yes"], [["yes"], references])
