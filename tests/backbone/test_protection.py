"""Which decoder layers must stay, and what moves when others go."""

from functools import cache

import pytest
from families import FAMILIES
from families.configs import build_llava_config, text_config
from transformers import AutoConfig

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError, Sizes, model_class_of
from optimum_mllm_prune.backbone.protection import last_of_each_kind, layer_kinds, protected_layers


@cache
def backbone_of(family):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config)


def test_layers_that_outer_keys_name_are_protected():
    protected = backbone_of("granite4_vision").protected_layers
    assert sorted(protected) == [0, 1, 3, 4, 5, 6]
    assert protected[3] == "vision features are added before it (deepstack_layer_map)"
    assert protected[5] == "vision features are added before it (spatial_target_layers)"


def test_outer_keys_are_renumbered():
    config = backbone_of("granite4_vision").config_for(Sizes((0, 1, 3, 4, 5, 6)))
    assert [list(pair) for pair in config.deepstack_layer_map] == [[1, 0], [2, 2]]
    assert config.spatial_target_layers == [5, 4, 1, 3]
    assert config.text_config.num_hidden_layers == 6


def test_layers_of_the_vision_tower_are_not_meant():
    backbone = backbone_of("vipllava")
    assert backbone.config.vision_feature_layer == [-2, -1]
    assert backbone.protected_layers == {}
    assert backbone.config_for(Sizes((0, 1))).vision_feature_layer == [-2, -1]


def test_a_config_that_changes_the_last_layer_protects_it():
    backbone = backbone_of("gemma4")
    reason = "its config would make layer 10 one of kind 'full_attention'"
    assert backbone.protected_layers == {11: f"without it, {reason}"}
    with pytest.raises(NotExpressibleError, match=reason):
        backbone.built(Sizes(tuple(range(11))))


@pytest.mark.parametrize(("sharing", "producers"), [(0, []), (2, [8, 9]), (4, [5, 7])])
def test_layers_whose_keys_and_values_others_reuse_are_protected(sharing, producers):
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 4
    config = FAMILIES["gemma4"].config()
    text = text_config("gemma4_text", num_hidden_layers=12, num_kv_shared_layers=sharing, layer_types=kinds)
    config.text_config = AutoConfig.for_model(**text)
    assert {i for i, why in protected_layers(config, 12).items() if "keys and values" in why} == set(producers)


@pytest.mark.parametrize(
    ("removed", "stay"),
    [
        ([], {2: "attention"}),
        ([0], {1: "conv", 2: "attention"}),
        ([2], {2: "attention"}),
        ([0, 1], {1: "conv", 2: "attention"}),
    ],
)
def test_the_last_layer_of_each_kind_stays(removed, stay):
    found = last_of_each_kind(["conv", "conv", "attention"], removed)
    assert found == {layer: f"it is the last layer of its kind ({kind})" for layer, kind in stay.items()}


def test_what_must_stay_includes_the_protected_layers():
    backbone = backbone_of("mllama")
    assert backbone.must_stay([1]).keys() == {0, 4}
    assert "self-attention" in backbone.must_stay([1])[0]


def test_kinds_without_layer_types_are_one():
    config = build_llava_config(text_config("llama"))
    assert layer_kinds(config, 4) == ["decoder"] * 4
