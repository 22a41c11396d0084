"""Losses by name and by weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.recovery.recipe import PRESETS, TERMS, Recipe, loss_weights


def test_the_presets():
    assert PRESETS == {
        "sft": {"sft": 1.0},
        "kd": {"logits": 1.0},
        "hidden": {"hidden": 1.0},
        "sft+kd": {"sft": 0.5, "logits": 0.5},
        "sft+hidden": {"sft": 0.5, "hidden": 0.5},
        "sft+hidden+kd": {"sft": 0.5, "hidden": 0.25, "logits": 0.25},
    }
    for name, weights in PRESETS.items():
        assert loss_weights(name) == weights
        assert sum(weights.values()) == 1


def test_a_preset_cannot_be_changed_through_what_is_given():
    loss_weights("sft")["sft"] = 7.0
    assert PRESETS["sft"] == {"sft": 1.0}


@given(st.dictionaries(st.sampled_from(TERMS), st.floats(0.001, 1000), min_size=1), st.sampled_from(["", " "]))
def test_weights_spelled_out(weights, space):
    text = f",{space}".join(f"{term}{space}={space}{weight!r}" for term, weight in weights.items())
    assert loss_weights(text) == weights


def test_terms_without_weight_are_left_out():
    assert loss_weights("sft=0,hidden=2") == {"hidden": 2.0}


WRONG = {
    "sgd": "unknown loss 'sgd': use one of sft, kd, hidden, sft+kd, sft+hidden, sft+hidden+kd, or weights such as",
    "": "unknown loss '': use one of",
    "sft+layers": "unknown loss 'sft+layers'",
    "kd=0.5": "unknown loss term 'kd': use one of sft, logits, hidden, layers",
    "sft=1,": "unknown loss term ''",
    "sft=much": "the weight of loss term 'sft' must be a number of at least 0, got 'much'",
    "sft=-1": "the weight of loss term 'sft' must be a number of at least 0, got '-1'",
    "sft=nan": "the weight of loss term 'sft' must be a number of at least 0, got 'nan'",
    "sft=inf": "the weight of loss term 'sft' must be a number of at least 0, got 'inf'",
    "sft=": "the weight of loss term 'sft' must be a number of at least 0, got ''",
    "sft=0,hidden=0": "loss 'sft=0,hidden=0' is always zero: give at least one term a weight",
    "sft=1,sft=2": "loss 'sft=1,sft=2' names the term 'sft' twice: name it once",
}


@pytest.mark.parametrize("loss", WRONG)
def test_a_loss_that_is_none(loss):
    with pytest.raises(UserInputError) as caught:
        loss_weights(loss)
    assert str(caught.value).startswith(WRONG[loss])


OUT_OF_RANGE = {
    ("divergence", "kl"): "unknown divergence 'kl': use one of forward_kl, reverse_kl, jsd",
    ("distance", "l1"): "unknown hidden_distance 'l1': use one of mse, cosine",
    ("logits_tokens", "all"): "unknown logits_tokens 'all': use one of answer, text",
    ("hidden_tokens", "images"): "unknown hidden_tokens 'images': use one of answer, text, all",
    ("temperature", 0.0): "temperature must be a number above 0, got 0.0",
    ("temperature", float("nan")): "temperature must be a number above 0, got nan",
    ("temperature", float("inf")): "temperature must be a number above 0, got inf",
    ("beta", 0.0): "jsd_beta must lie between 0 and 1, got 0.0",
    ("beta", 1.0): "jsd_beta must lie between 0 and 1, got 1.0",
}


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range(key, value):
    with pytest.raises(UserInputError) as caught:
        Recipe({"sft": 1.0}, **{key: value})
    assert str(caught.value).startswith(OUT_OF_RANGE[key, value])


def test_only_sft_needs_no_teacher():
    assert not Recipe({"sft": 1.0}).needs_teacher
    assert all(Recipe({"sft": 1.0, term: 1.0}).needs_teacher for term in TERMS if term != "sft")


def test_a_term_that_does_not_count_weighs_nothing():
    recipe = Recipe({"hidden": 0.25})
    assert [recipe.weight(term) for term in TERMS] == [0, 0, 0.25, 0]
