"""Layers merged into those before them: which can be, where they go, and what comes of their weights."""

from functools import cache

import pytest
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.backbone import Backbone, model_class_of
from optimum_mllm_prune.backbone.merging import absorbed, merged, weights_of


FIRST = "no layer is before it to be merged into"
OTHER = "its weights are not those of the layer before it, so the two cannot be merged"


@cache
def backbone_of(family):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config)


@pytest.mark.parametrize(
    ("family", "others"),
    [
        ("llava_llama_gqa", []),
        ("llava_gemma2", []),
        ("qwen3_5", [2, 3, 5]),
        ("mllama", [1, 2, 4, 5]),
        ("lfm2_vl", [2, 3, 4]),
        ("qwen3_5_moe", [1, 2, 3]),
    ],
)
def test_layers_of_another_make_cannot_be_merged(family, others):
    assert backbone_of(family).unmergeable_layers == {0: FIRST} | dict.fromkeys(others, OTHER)


@given(st.integers(1, 8), st.data())
def test_each_goes_into_the_nearest_before_it_that_stays(number, data):
    removed = data.draw(st.sets(st.integers(0, number - 1)))
    expected = {}
    for layer in sorted(removed):
        into = max((i for i in range(layer) if i not in removed), default=None)
        if into is not None:
            expected.setdefault(into, []).append(layer)
    assert absorbed(removed, number) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_are_summed_by_their_differences(dtype):
    layers = FAMILIES["llava_llama_biased"].build(dtype=dtype).model.language_model.layers
    weights = weights_of(layers)
    before = [{name: weight.clone() for name, weight in layer.items()} for layer in weights]
    found = dict(merged(weights, 1, [2, 3]))
    assert found.keys() == dict(layers[1].named_parameters()).keys()
    for name, weight in found.items():
        one, two, three = (weights[i][name].double() for i in (1, 2, 3))
        expected = (one + (two - one) + (three - one)).to(dtype)
        assert weight.dtype == dtype
        torch.testing.assert_close(weight, expected)
    for new, old in zip(weights, before, strict=True):
        assert all(torch.equal(weight, old[name]) for name, weight in new.items())


def test_of_none_it_is_the_layer_itself():
    weights = weights_of(FAMILIES["llava_llama_gqa"].build().model.language_model.layers)
    assert all(torch.equal(weight, weights[2][name]) for name, weight in merged(weights, 2, []))
