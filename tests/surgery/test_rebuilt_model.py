"""A pruned model is what a reload of its checkpoint will be: nothing stale, nothing lost, nothing untied."""

import copy
from collections import defaultdict
from functools import cache

import pytest
import torch
from families import FAMILIES, greedy, head_choices, reload
from masking import plan_removing

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.backbone.skeleton import count_parameters, shapes_of
from optimum_mllm_prune.backbone.text_config import text_config
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.planning.selection import layer_order
from optimum_mllm_prune.surgery import pruned_model


# Llava's plain, fused, biased, tied and sliding backbones; DeepStack, linear attention, cross attention, convolutions,
# experts; a flat position scheme and Qwen's; keys of other names, beside the text config and for each layer.
SOME = [
    "llava_llama_tied",
    "llava_gemma2",
    "internvl_phi3",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "mllama",
    "lfm2_vl",
    "llama4",
    "llava_opt",
    "granite4_vision",
    "gemma4",
    "qwen3_vl_moe",
]


@cache
def original(family):
    return FAMILIES[family].build()


@cache
def backbone_of(family):
    return Backbone.of(original(family))


def removable(backbone):
    return layer_order(torch.zeros(backbone.num_layers), backbone.layer_kinds, backbone.protected_layers)


def without_a_layer(family):
    backbone = backbone_of(family)
    plan = plan_removing(backbone, layers=removable(backbone)[:1])
    return pruned_model(copy.deepcopy(original(family)), backbone, plan), backbone, plan


def narrowed(family):
    backbone = backbone_of(family)
    groups = {group.kind: group for group in backbone.groups()[0]}
    plan = plan_removing(
        backbone,
        heads=max(n for n, twin in head_choices(backbone).items() if not twin) if "heads" in groups else None,
        channels=groups["channels"].units // 2 if "channels" in groups else None,
    )
    return pruned_model(copy.deepcopy(original(family)), backbone, plan), backbone, plan


WAYS = pytest.mark.parametrize("prune", [without_a_layer, narrowed], ids=["layers", "width"])


def shared_storage(model):
    """Names of parameters that lie in one storage, where there are several."""
    names = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter.data_ptr()].add(name)
    return sorted(map(sorted, (same for same in names.values() if len(same) > 1)))


@WAYS
@pytest.mark.parametrize("family", SOME)
def test_it_survives_a_save_and_a_reload(family, prune, tmp_path):
    pruned, _, _ = prune(family)
    pruned.save_pretrained(tmp_path)
    reloaded, complaints = reload(tmp_path)
    assert complaints == {}
    assert type(reloaded) is type(original(family))
    config = original(family).config
    for inputs in (FAMILIES[family].inputs(config), FAMILIES[family].text_inputs(config)):
        with torch.no_grad():
            assert torch.equal(reloaded(**inputs).logits, pruned(**inputs).logits)


@WAYS
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_cache_is_generation_without(family, prune):
    pruned, _, _ = prune(family)
    inputs = FAMILIES[family].inputs(pruned.config)
    (cached, cached_logits), (fresh, fresh_logits) = (greedy(pruned, inputs, use_cache=use) for use in (True, False))
    assert (cached_logits - fresh_logits).abs().max() < 1e-3
    assert torch.equal(cached, fresh)


@WAYS
@pytest.mark.parametrize("family", FAMILIES)
def test_its_tensors_are_the_intended_ones(family, prune):
    pruned, backbone, plan = prune(family)
    sizes = plan.sizes(backbone)
    assert shapes_of(pruned) == backbone.intended_shapes(sizes) == shapes_of(backbone.built(sizes))
    assert count_parameters(pruned) == count_parameters(backbone.built(sizes)) < backbone.parameters
    assert not any(tensor.is_meta for tensor in (*pruned.parameters(), *pruned.buffers()))
    assert not pruned.training
    assert pruned.dtype == original(family).dtype


@WAYS
@pytest.mark.parametrize("family", [name for name in FAMILIES if shared_storage(original(name))])
def test_tied_tensors_stay_one_tensor(family, prune):
    pruned, _, _ = prune(family)
    assert shared_storage(pruned) == shared_storage(original(family))


def test_there_are_tied_families():
    assert shared_storage(original("llava_llama_tied")) == [
        ["lm_head.weight", "model.language_model.embed_tokens.weight"]
    ]
    assert shared_storage(original("llava_llama")) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_renumbered(family):
    pruned, backbone, _ = without_a_layer(family)
    layers = pruned.get_submodule(backbone.layers_prefix)
    assert len(layers) == backbone.num_layers - 1 == text_config(pruned.config).num_hidden_layers
    numbers = [(i, m.layer_idx) for i, layer in enumerate(layers) for m in layer.modules() if hasattr(m, "layer_idx")]
    assert numbers
    assert all(number == index for index, number in numbers)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_ones_that_were_kept(family):
    pruned, backbone, plan = without_a_layer(family)
    before, after = original(family).state_dict(), pruned.state_dict()
    for old, tensor in before.items():
        new = backbone.renamed(old, plan.kept_layers)
        if new is not None:
            assert torch.equal(after[new], tensor), old
    dropped = {old for old in before if backbone.renamed(old, plan.kept_layers) is None}
    assert {backbone.layer_of(name) for name in dropped} == set(plan.removed_layers)


def test_the_original_gives_up_its_tensors():
    model = copy.deepcopy(original("llava_llama"))
    backbone = backbone_of("llava_llama")
    untouched = model.lm_head.weight.data_ptr()
    pruned = pruned_model(model, backbone, plan_removing(backbone, layers=[1]))
    assert list(model.parameters()) == []
    assert pruned.lm_head.weight.data_ptr() == untouched


def test_layer_types_go_with_their_layers():
    before = text_config(original("llava_gemma2").config).layer_types
    backbone = backbone_of("llava_gemma2")
    assert before == ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    pruned = pruned_model(copy.deepcopy(original("llava_gemma2")), backbone, plan_removing(backbone, layers=[1, 2]))
    assert text_config(pruned.config).layer_types == ["sliding_attention", "full_attention"]
    pruned = pruned_model(copy.deepcopy(original("llava_gemma2")), backbone, plan_removing(backbone, layers=[1]))
    assert text_config(pruned.config).layer_types == ["sliding_attention", "sliding_attention", "full_attention"]


def test_layers_that_take_vision_features_are_renumbered():
    backbone = backbone_of("granite4_vision")
    plan = plan_removing(backbone, layers=[2, 7])
    config = pruned_model(copy.deepcopy(original("granite4_vision")), backbone, plan).config
    assert [list(pair) for pair in config.deepstack_layer_map] == [[1, 0], [2, 2]]
    assert config.spatial_target_layers == [5, 4, 1, 3]


@pytest.mark.parametrize(("removed", "crossing"), [([1], [3]), ([2, 3], [1, 2]), ([2, 4], [1]), ([5], [1, 4])])
def test_cross_attention_layers_are_renumbered(removed, crossing):
    backbone = backbone_of("mllama")
    assert text_config(backbone.config).cross_attention_layers == [1, 4]
    pruned = pruned_model(copy.deepcopy(original("mllama")), backbone, plan_removing(backbone, layers=removed))
    assert text_config(pruned.config).cross_attention_layers == crossing
    layers = pruned.get_submodule(backbone.layers_prefix)
    assert [i for i, layer in enumerate(layers) if hasattr(layer, "cross_attn")] == crossing


VISION_FEATURES = "vision features are added after it"
VISION_TARGETS = "vision features are added before it"
LAST_KIND = "without it, its config would make layer 10 one of kind 'full_attention'"
CACHE_LENGTH = "the length of the cached text is read from it"


@pytest.mark.parametrize(
    ("family", "protected", "why"),
    [
        ("qwen3_vl", {0, 1}, VISION_FEATURES),
        ("qwen3_vl_moe", {0}, VISION_FEATURES),
        ("granite4_vision", {0, 1, 3, 4, 5, 6}, VISION_TARGETS),
        ("gemma4", {11}, LAST_KIND),
        ("mllama", {0}, CACHE_LENGTH),
        ("qwen2_vl", set(), ""),
    ],
)
def test_layers_that_others_lean_on_stay(family, protected, why):
    backbone = backbone_of(family)
    assert backbone.protected_layers.keys() == protected
    assert protected.isdisjoint(removable(backbone))
    for layer in protected:
        reason = f"the plan removes layer {layer}: {why}"
        with pytest.raises(UserInputError, match=reason):
            pruned_model(copy.deepcopy(original(family)), backbone, plan_removing(backbone, layers=[layer]))


@pytest.mark.parametrize(
    ("family", "removed", "last"),
    [
        ("lfm2_vl", [0, 1, 2, 4], "4: it is the last layer of its kind (full_attention)"),
        ("lfm2_vl", [0, 1, 3], "3: it is the last layer of its kind (conv)"),
        ("mllama", [1, 2, 4], "4: it is the last layer of its kind (cross_attention)"),
        ("qwen3_5", [2, 5], "5: it is the last layer of its kind (full_attention)"),
    ],
)
def test_a_plan_without_any_layer_of_a_kind_is_refused(family, removed, last):
    backbone = backbone_of(family)
    with pytest.raises(UserInputError) as refused:
        plan_removing(backbone, layers=removed).sizes(backbone)
    assert str(refused.value) == f"the plan removes layer {last}."


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl", "llava_gemma2", "qwen3_5_moe", "mllama"])
def test_a_hybrid_keeps_a_layer_of_every_kind(family):
    backbone = backbone_of(family)
    order = removable(backbone)
    left = {kind for i, kind in enumerate(backbone.layer_kinds) if i not in order}
    assert left == set(backbone.layer_kinds)
    assert len(left) > 1
    pruned = pruned_model(copy.deepcopy(original(family)), backbone, plan_removing(backbone, layers=sorted(order)))
    assert set(Backbone.of(pruned).layer_kinds) == left
    inputs = FAMILIES[family].inputs(pruned.config)
    cached, fresh = (greedy(pruned, inputs, use_cache=use)[1] for use in (True, False))
    assert (cached - fresh).abs().max() < 1e-3


def test_settings_of_generation_and_attention_stay():
    model = copy.deepcopy(original("llava_llama"))
    model.generation_config.max_new_tokens = 17
    model.set_attn_implementation("eager")
    backbone = backbone_of("llava_llama")
    pruned = pruned_model(model, backbone, plan_removing(backbone, layers=[0]))
    assert pruned.generation_config.max_new_tokens == 17
    assert pruned.config._attn_implementation == "eager"
    assert pruned.config.text_config._attn_implementation == "eager"
