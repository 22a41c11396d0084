"""What all metrics have in common, and exact match, which has nothing else."""

import subprocess
import sys
from random import Random

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.evaluation import exact_match as plain_exact_match
from optimum_mllm_prune.evaluation.metrics import METRICS


ANSWERED = ["exact_match", "vqa_accuracy", "yes_no_f1", "anls", "relaxed_accuracy"]


def some_rows(name, rows=12, seed=0):
    """Predictions and references that suit the metric, some of them right."""
    random = Random(seed)
    if name == "answer_perplexity":
        return [random.uniform(0, 9) for _ in range(rows)], [random.randint(1, 5) for _ in range(rows)]
    if name == "token_agreement":
        return tuple([[random.randint(0, 2) for _ in range(3)] for _ in range(rows)] for _ in range(2))
    texts = ["yes", "no"] if name == "yes_no_f1" else ["10", "10.2", "two", "2", "kitten", "mitten"]
    return random.choices(texts, k=rows), [[random.choice(texts)] for _ in range(rows)]


@pytest.fixture(params=METRICS)
def metric(request):
    return METRICS[request.param]()


def test_the_registry():
    assert list(METRICS) == [*ANSWERED, "answer_perplexity", "token_agreement"]


def test_every_metric_is_one_of_evaluate_and_says_what_it_is(metric):
    assert isinstance(metric, evaluate.Metric)
    assert METRICS[metric.name] is type(metric)
    assert metric.description.splitlines()[0].endswith(".")
    assert metric.citation
    assert metric.unit in ("percent", None)


def test_contributions_add_up_to_what_compute_gives(metric):
    predictions, references = some_rows(metric.name)
    contributions = metric.contributions(predictions, references)
    assert contributions.dtype == np.float64
    assert len(contributions) == 12
    value = metric.value(contributions.sum(axis=0))
    assert metric.compute(predictions=predictions, references=references)[metric.name] == value


def test_batches_add_up_to_the_whole(metric):
    predictions, references = some_rows(metric.name)
    for part in (slice(0, 5), slice(5, None)):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == type(metric)().compute(predictions=predictions, references=references)


def test_values_of_many_sums_at_once_are_those_of_each(metric):
    contributions = metric.contributions(*some_rows(metric.name)).reshape(2, 3, 2, -1)
    sums = contributions.sum(axis=2)
    each = [[float(metric.value(sums[i, j])) for j in range(3)] for i in range(2)]
    np.testing.assert_array_equal(metric.value(sums), each)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(list(METRICS)))
def test_values_are_in_range_and_the_order_of_rows_does_not_matter(seed, name):
    metric = METRICS[name]()
    predictions, references = some_rows(name, rows=5, seed=seed)
    value = metric._compute(predictions, references)[name]
    assert 0 <= value <= 100 if metric.unit == "percent" else value >= 1
    backwards = metric._compute(predictions[::-1], references[::-1])[name]
    assert backwards == pytest.approx(value)


def test_no_row_is_refused(metric):
    with pytest.raises(UserInputError, match=r"^There is no row to score: give at least one prediction and its ref"):
        metric.compute(predictions=[], references=[])


def test_other_lengths_are_refused(metric):
    predictions, references = some_rows(metric.name)
    with pytest.raises(UserInputError, match=r"^There are 12 predictions and 11 references: give one of each a row.$"):
        metric.contributions(predictions, references[:-1])
    with pytest.raises(ValueError, match=r"Mismatch in the number of predictions \(12\) and references \(11\)"):
        metric.compute(predictions=predictions, references=references[:-1])


@pytest.mark.parametrize("name", ANSWERED)
def test_rows_without_references_are_refused(name):
    with pytest.raises(UserInputError, match=r"^Row 1 has no answer to compare with: add one or take the row out.$"):
        METRICS[name]().compute(predictions=["yes", "yes"], references=[["yes"], []])


@pytest.mark.parametrize("name", ANSWERED)
def test_a_text_is_no_list_of_references(name):
    with pytest.raises(
        UserInputError, match=r"^The references of row 1 are a text: give a list of acceptable answers"
    ):
        METRICS[name]().contributions(["yes", "yes"], [["yes"], "yes"])


def test_no_network_is_asked():
    script = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from optimum_mllm_prune.evaluation.metrics import METRICS\n"
        "print(METRICS['exact_match']().compute(predictions=['7'], references=[['7']]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "{'exact_match': 100.0}\n", done.stderr


@pytest.mark.parametrize("in_memory", [True, False])
def test_answers_stay_in_memory_unless_asked_otherwise(in_memory, tmp_path):
    options = {} if in_memory else {"keep_in_memory": False}
    exact_match = METRICS["exact_match"](cache_dir=str(tmp_path), **options)
    exact_match.add_batch(predictions=["7"], references=[["7"]])
    assert any(path.is_file() for path in tmp_path.rglob("*")) is not in_memory
    assert exact_match.compute() == {"exact_match": 100}


@given(st.lists(st.tuples(st.sampled_from("ab "), st.sampled_from("ab ")), min_size=1, max_size=9))
def test_exact_match_of_single_references_is_the_plain_one(rows):
    answers, references = ([text.strip() for text in column] for column in zip(*rows, strict=True))
    found = METRICS["exact_match"]()._compute(answers, [[reference] for reference in references])
    assert found == {"exact_match": pytest.approx(plain_exact_match(answers, references))}


@pytest.mark.parametrize(
    "answer, references, expected",
    [(" 7\n", ["7"], 1), ("7", ["8", " 7 "], 1), ("Yes", ["yes"], 0), ("7.0", ["7"], 0), ("7 8", ["7  8"], 0)],
)
def test_exact_match_is_to_the_letter(answer, references, expected):
    assert METRICS["exact_match"]().score(answer, references) == expected
