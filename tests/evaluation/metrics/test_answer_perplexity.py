import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.evaluation.metrics import METRICS


answer_perplexity = METRICS["answer_perplexity"]()
rows = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=6)


@given(rows)
def test_it_is_exp_of_the_mean_over_tokens_and_at_least_one(rows):
    nats, tokens = zip(*rows, strict=True)
    found = answer_perplexity.compute(predictions=nats, references=tokens)["answer_perplexity"]
    assert found == pytest.approx(math.exp(math.fsum(nats) / sum(tokens)))
    assert found >= 1


def test_of_a_uniform_guess_it_is_the_size_of_the_vocabulary():
    logits = torch.zeros(5, 32, dtype=torch.float64)
    nats = [cross_entropy(logits[:n], torch.arange(n), reduction="sum").item() for n in (2, 3)]
    assert answer_perplexity.compute(predictions=nats, references=[2, 3])["answer_perplexity"] == pytest.approx(32)


def test_tokens_and_not_rows_weigh_equal():
    found = answer_perplexity.compute(predictions=[0.0, 3.0], references=[3, 1])
    assert found == {"answer_perplexity": pytest.approx(math.exp(3 / 4))}


def test_what_float64_cannot_hold_is_infinite():
    assert answer_perplexity.value(np.array([1000.0, 1.0])) == math.inf


def test_lower_is_better_and_it_is_no_percentage():
    assert not answer_perplexity.higher_is_better
    assert answer_perplexity.unit is None


def test_rows_without_tokens_are_refused():
    message = r"^Row 1 has no answer token: add an answer or take the row out.$"
    with pytest.raises(UserInputError, match=message):
        answer_perplexity.contributions([1.0, 0.0], [2, 0])


@pytest.mark.parametrize("nats", [-0.5, math.nan, math.inf])
def test_impossible_losses_are_refused(nats):
    message = rf"^The negative log-likelihood of row 1 is {nats}: give a finite number of nats, 0 or more.$"
    with pytest.raises(UserInputError, match=message):
        answer_perplexity.contributions([1.0, nats], [2, 2])
