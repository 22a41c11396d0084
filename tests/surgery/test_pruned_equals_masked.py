"""A pruned model computes exactly what the original computes with the same parts switched off."""

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from accelerate import cpu_offload
from families import FAMILIES, head_choices
from masking import masked, plan_removing

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.planning.selection import layer_order
from optimum_mllm_prune.surgery import pruned_model


UNITS = (
    "layers",
    "heads",
    "twin heads",
    "query heads",
    "channels",
    "heads and channels",
    "layers and channels",
    "hidden",
    "layers, channels and hidden",
)
HEAD_SIZE = "derives the head size as hidden_size / num_attention_heads, so heads cannot go alone"
EVERY_HEAD = "derives the head size as hidden_size / num_attention_heads, so every head would change"
ANOTHER_LENGTH = "goes by hidden_size but is not as long, so what it holds is not known"
ONE_KEY_VALUE_HEAD = "all its query heads share one key-value head: remove query heads instead"
# What a family's config cannot say, and why. Everything else it must be able to say.
REFUSED = {
    ("qwen2_vl", "heads"): HEAD_SIZE,
    ("qwen2_5_vl", "heads"): HEAD_SIZE,
    ("mllama", "heads"): HEAD_SIZE,
    ("glm4v", "heads"): HEAD_SIZE,
    ("llava_opt", "heads"): HEAD_SIZE,
    ("gemma4", "heads"): "its head_dim differs between layers",
    ("paligemma", "heads"): ONE_KEY_VALUE_HEAD,
    ("qwen3_5_moe", "channels"): "qwen3_5_moe_text ignores intermediate_size",
    ("llama4", "channels"): "experts.gate_up_proj stacks several experts in one tensor",
    ("aria", "channels"): "experts.gate_up_proj stacks several experts in one tensor",
    **{(name, "hidden"): EVERY_HEAD for name in ("qwen2_vl", "qwen2_5_vl", "mllama", "glm4v", "llava_opt")},
    ("aya_vision", "hidden"): f"multi_modal_projector.linear_2.weight {ANOTHER_LENGTH}",
    ("idefics2", "hidden"): f"perceiver_resampler.layers.0.mlp.gate_proj.weight {ANOTHER_LENGTH}",
    ("lfm2_vl", "hidden"): f"layers.0.conv.in_proj.weight {ANOTHER_LENGTH}",
    ("glm_ocr", "hidden"): "what the projector gives is sized by no key of its config alone",
}
# Llama's config rejects head counts that do not divide the hidden size; with biases it has no twin.
WITH_TWIN = {"llava_llama", "llava_llama_gqa", "llava_llama_tied", "vipllava", "idefics3", "smolvlm"}
# One query head a group: nothing to take evenly from every group.
ONE_QUERY_HEAD_A_GROUP = {"llava_llama", "llava_phi", "got_ocr2"}
# Mostly the difference is exactly 0; a shorter sum may be rounded in another order.
ROUNDING = 2e-4
# Norms sum over fewer, and linear attention makes more of it; in float64 the difference is 0.
ROUNDING_OF_NORMS = 1e-3


def can(family, unit):
    if unit == "layers":
        return True
    if unit == "layers and channels":
        return can(family, "channels")
    if unit == "layers, channels and hidden":
        return can(family, "channels") and can(family, "hidden")
    if unit == "heads and channels":
        return can(family, "channels") and (can(family, "heads") or can(family, "query heads"))
    if unit == "twin heads":
        return family in WITH_TWIN
    if unit == "query heads":
        expressible = REFUSED.get((family, "heads"), ONE_KEY_VALUE_HEAD) == ONE_KEY_VALUE_HEAD
        return family not in ONE_QUERY_HEAD_A_GROUP and expressible
    return (family, unit) not in REFUSED


CASES = [(family, unit) for family in FAMILIES for unit in UNITS if can(family, unit)]


@cache
def original(family, dtype=torch.float32):
    return FAMILIES[family].build(dtype=dtype)


@cache
def backbone_of(family, head_unit="auto"):
    return Backbone.of(original(family), head_unit)


def apart(backbone):
    """Two layers that may go, others between them where there are enough; fewer where fewer may."""
    order = layer_order(torch.arange(backbone.num_layers), backbone.layer_kinds, backbone.protected_layers)
    return sorted({order[0], order[-1]})


def native(backbone):
    return max(n for n, twin in head_choices(backbone).items() if not twin)


def case(family, unit):
    """The backbone and a plan that removes the unit."""
    backbone = backbone_of(family, "query" if unit == "query heads" else "auto")
    if unit == "layers":
        return backbone, plan_removing(backbone, layers=apart(backbone))
    if unit == "layers and channels":
        return backbone, plan_removing(backbone, apart(backbone), channels=backbone.channels.units * 5 // 8)
    if unit == "layers, channels and hidden":
        channels, hidden = backbone.channels.units * 5 // 8, backbone.hidden.size * 5 // 8
        return backbone, plan_removing(backbone, apart(backbone), channels=channels, hidden=hidden)
    if unit == "channels":
        return backbone, plan_removing(backbone, channels=backbone.channels.units * 5 // 8)
    if unit == "twin heads":
        return backbone, plan_removing(
            backbone, heads=max(n for n, twin in head_choices(backbone).items() if twin), twin=True
        )
    if unit == "hidden":
        return backbone, plan_removing(backbone, hidden=backbone.hidden.size * 5 // 8)
    channels = backbone.channels.units * 5 // 8 if unit == "heads and channels" else None
    return backbone, plan_removing(backbone, heads=native(backbone), channels=channels)


def inputs_of(family):
    config = original(family).config
    return {"image": FAMILIES[family].inputs(config), "text": FAMILIES[family].text_inputs(config)}


@torch.no_grad()
def real_logits(model, inputs):
    return model(**inputs).logits[inputs["attention_mask"].bool()].float()


def pruned_copy(family, backbone, plan, dtype=torch.float32):
    return pruned_model(copy.deepcopy(original(family, dtype)), backbone, plan)


@pytest.mark.parametrize(("family", "unit"), CASES)
def test_pruned_is_masked(family, unit):
    backbone, plan = case(family, unit)
    pruned = pruned_copy(family, backbone, plan)
    for inputs in inputs_of(family).values():
        whole = real_logits(original(family), inputs)
        with masked(original(family), backbone, plan) as model:
            expected = real_logits(model, inputs)
        assert (expected - whole).abs().max() > (0.1 if plan.removed_hidden else 1e-2)
        allowed = ROUNDING_OF_NORMS if plan.removed_hidden else ROUNDING
        assert (real_logits(pruned, inputs) - expected).abs().max() <= allowed


@pytest.mark.parametrize(("family", "unit"), [case for case in CASES if case[1] not in ("layers", "hidden")])
def test_the_plans_above_remove_other_units_in_every_layer(family, unit):
    _, plan = case(family, unit)
    for removed in (plan.removed_heads, plan.removed_channels):
        neighbours = list(removed.values())
        assert all(here != there for here, there in pairwise(neighbours))


@pytest.mark.parametrize(("family", "kind"), REFUSED)
def test_what_a_config_cannot_say_is_refused_with_the_reason(family, kind):
    backbone = backbone_of(family, "group")
    with pytest.raises(NotExpressibleError) as refused:
        getattr(backbone, kind)
    assert REFUSED[family, kind] in str(refused.value)
    if kind == "hidden":
        with pytest.raises(UserInputError) as told:
            backbone.residual_stream()
        assert str(told.value) == (
            f"the hidden size of this architecture cannot be changed ({refused.value}): use method 'width' or 'layer'."
        )
        return
    found, reasons = backbone.groups()
    assert kind not in {group.kind for group in found}
    assert f"{kind}: {refused.value}" in reasons


@pytest.mark.parametrize("family", [name for name in FAMILIES if can(name, "heads")])
def test_only_llama_without_biases_needs_and_has_a_twin(family):
    assert any(head_choices(backbone_of(family)).values()) == (family in WITH_TWIN)


@pytest.mark.parametrize("family", sorted(ONE_QUERY_HEAD_A_GROUP))
def test_a_group_of_one_query_head_gives_none(family):
    assert head_choices(backbone_of(family, "query")) == {}


@pytest.mark.parametrize("unit", ["layers", "heads", "query heads", "channels", "heads and channels", "hidden"])
@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_phi3", "qwen3_vl", "qwen3_5"])
def test_pruned_is_masked_in_bf16(family, unit):
    backbone, plan = case(family, unit)
    # A factor of a norm is rounded with the weights that it changes.
    plan = replace(plan, norm_factors={})
    pruned = pruned_copy(family, backbone, plan, torch.bfloat16)
    assert {p.dtype for p in pruned.parameters()} == {p.dtype for p in original(family, torch.bfloat16).parameters()}
    inputs = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in inputs_of(family)["image"].items()
    }
    whole = real_logits(original(family, torch.bfloat16), inputs)
    with masked(original(family, torch.bfloat16), backbone, plan) as model:
        expected = real_logits(model, inputs)
    difference, effect = (real_logits(pruned, inputs) - expected).abs().max(), (expected - whole).abs().max()
    assert effect > 0.5
    assert difference == 0 if unit == "layers" else difference < 0.05 * effect


@pytest.mark.parametrize("keep", [1, 2])
def test_any_depth_down_to_one_layer(keep):
    backbone = backbone_of("llava_llama_gqa")
    plan = plan_removing(backbone, layers=list(range(backbone.num_layers - keep)))
    pruned = pruned_copy("llava_llama_gqa", backbone, plan)
    inputs = inputs_of("llava_llama_gqa")["image"]
    with masked(original("llava_llama_gqa"), backbone, plan) as model:
        assert torch.equal(real_logits(pruned, inputs), real_logits(model, inputs))


def test_every_expressible_number_of_heads():
    backbone = backbone_of("llava_llama")
    inputs = inputs_of("llava_llama")["image"]
    assert sorted(head_choices(backbone)) == [1, 2, 3, 4, 5, 6, 7]
    for kept, twin in head_choices(backbone).items():
        plan = plan_removing(backbone, heads=kept, twin=twin)
        pruned = pruned_copy("llava_llama", backbone, plan)
        text = pruned.config.text_config
        assert (text.num_attention_heads, text.head_dim, text.model_type) == (kept, 8, "mistral" if twin else "llama")
        with masked(original("llava_llama"), backbone, plan) as model:
            assert (real_logits(pruned, inputs) - real_logits(model, inputs)).abs().max() <= ROUNDING


def test_a_plan_that_the_config_cannot_say_is_refused_before_the_model_is_touched():
    backbone = backbone_of("llava_llama")
    model = copy.deepcopy(original("llava_llama"))
    reason = r"config cannot express the plan: The hidden size \(64\) is not a multiple .* attention heads \(7\)"
    with pytest.raises(UserInputError, match=reason):
        pruned_model(model, backbone, plan_removing(backbone, heads=7, twin=False))
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), original("llava_llama").parameters(), strict=True)
    )


def test_offloaded_weights_are_refused():
    backbone = backbone_of("llava_llama")
    model = copy.deepcopy(original("llava_llama"))
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(UserInputError, match=r"outside the decoder layers are offloaded \(first: model.vision_tower"):
        pruned_model(model, backbone, plan_removing(backbone, layers=[1]))


@pytest.mark.parametrize("unit", ["layers", "heads and channels", "layers and channels"])
def test_the_original_can_be_kept(unit):
    family = "llava_llama_gqa"
    backbone, plan = case(family, unit)
    model = copy.deepcopy(original(family))
    pruned = pruned_model(model, backbone, plan, keep_original=True)
    for inputs in inputs_of(family).values():
        assert torch.equal(real_logits(model, inputs), real_logits(original(family), inputs))
        assert torch.equal(real_logits(pruned, inputs), real_logits(pruned_copy(family, backbone, plan), inputs))
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in pruned.parameters()}
    assert shared
