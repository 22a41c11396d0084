"""A narrower residual stream: saved and reloaded, tied, refused where the code uses the hidden size as a number."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from families import FAMILIES, greedy, randomise, reload
from families.configs import build_llava_config, text_config
from masking import masked, plan_removing
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune.backbone import Backbone, Sizes
from optimum_mllm_prune.backbone import hidden as hidden_module
from optimum_mllm_prune.backbone.skeleton import count_parameters, shapes_of
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.surgery import pruned_model


# Tied; a mirrored key and DeepStack; layer norms and a projector of another inner width; a convolution before it;
# scaled token embeddings.
SOME = ["llava_llama_tied", "qwen3_vl", "cohere2_vision", "got_ocr2", "gemma3"]
KEPT = 40


@cache
def original(family):
    return FAMILIES[family].build()


@cache
def backbone_of(family):
    return Backbone.of(original(family))


def narrowed(family, kept=KEPT):
    backbone = backbone_of(family)
    plan = plan_removing(backbone, hidden=kept)
    return pruned_model(copy.deepcopy(original(family)), backbone, plan), plan


@pytest.mark.parametrize("family", SOME)
def test_it_survives_a_save_and_a_reload_and_generates(family, tmp_path):
    pruned, plan = narrowed(family)
    assert shapes_of(pruned) == backbone_of(family).intended_shapes(plan.sizes(backbone_of(family)))
    pruned.save_pretrained(tmp_path)
    reloaded, complaints = reload(tmp_path)
    assert complaints == {}
    inputs = FAMILIES[family].inputs(original(family).config)
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, pruned(**inputs).logits)
    (cached, cached_logits), (fresh, fresh_logits) = (greedy(pruned, inputs, use_cache=use) for use in (True, False))
    assert (cached_logits - fresh_logits).abs().max() < 1e-3
    assert torch.equal(cached, fresh)


def test_tied_embeddings_stay_one_tensor():
    pruned, _ = narrowed("llava_llama_tied")
    assert pruned.lm_head.weight is pruned.get_input_embeddings().weight
    assert pruned.lm_head.weight.shape[1] == KEPT


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backbone", ["gemma", "gemma2"])
def test_scaled_token_embeddings_give_what_they_gave(backbone, tied):
    text = text_config(backbone, head_dim=16, tie_word_embeddings=tied)
    model = AutoModelForImageTextToText.from_config(build_llava_config(text))
    randomise(model, 0)
    model.eval()
    found = Backbone.of(model)
    plan = plan_removing(found, hidden=KEPT)
    pruned = pruned_model(copy.deepcopy(model), found, plan)
    assert found.hidden.final_norm == "model.language_model.norm"
    kept = [i for i in range(64) if i not in plan.removed_hidden]
    tokens = torch.arange(20).view(1, 20)
    before, after = (m.get_input_embeddings()(tokens) for m in (model, pruned))
    torch.testing.assert_close(after, before[..., kept])
    # The head has the weights of the embeddings where these are tied; the norm before it makes up for that.
    with torch.no_grad(), masked(model, found, plan):
        expected = model(input_ids=tokens).logits
    torch.testing.assert_close(pruned(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-4)
    assert (pruned.lm_head.weight is pruned.get_input_embeddings().weight) == tied


def test_every_tensor_holds_what_stays_in_its_order():
    family = "llava_llama_gqa"
    pruned, plan = narrowed(family)
    kept = [i for i in range(64) if i not in plan.removed_hidden]
    (gone,) = plan.removed_projector.values()
    inner = [i for i in range(64) if i not in gone]
    before, after = original(family).state_dict(), pruned.state_dict()
    layer, projector = "model.language_model.layers.1.", "model.multi_modal_projector."
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"][:, kept])
    assert torch.equal(after[f"{layer}mlp.up_proj.weight"], before[f"{layer}mlp.up_proj.weight"][:, kept])
    assert torch.equal(after[f"{layer}mlp.down_proj.weight"], before[f"{layer}mlp.down_proj.weight"][kept])
    assert torch.equal(after[f"{projector}linear_1.bias"], before[f"{projector}linear_1.bias"][inner])
    assert torch.equal(after[f"{projector}linear_2.weight"], before[f"{projector}linear_2.weight"][kept][:, inner])
    vision = [name for name in before if "vision_tower" in name]
    assert vision and all(torch.equal(after[name], before[name]) for name in vision)


def test_the_original_can_be_kept():
    family = "llava_phi"
    model, backbone = copy.deepcopy(original(family)), backbone_of(family)
    pruned = pruned_model(model, backbone, plan_removing(backbone, hidden=KEPT), keep_original=True)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), original(family).parameters(), strict=True))
    assert count_parameters(pruned) < count_parameters(model)
    assert [len(m._forward_hooks) for m in model.modules()] == [
        len(m._forward_hooks) for m in original(family).modules()
    ]


def test_a_number_that_no_shape_shows_is_found_by_the_logits(monkeypatch):
    monkeypatch.setattr(hidden_module, "_scales_embeddings", lambda *_: False)
    model = FAMILIES["llava_gemma"].build()
    backbone = Backbone.of(model)
    with pytest.raises(UserInputError) as refused:
        pruned_model(model, backbone, plan_removing(backbone, hidden=KEPT))
    said = str(refused.value)
    assert said.startswith("with a smaller hidden size this architecture computes something else (logits differ by 0.")
    assert said.endswith(" of their size): use method 'width' or 'layer'.")


def test_a_size_with_which_a_kernel_does_not_run():
    family = "qwen3_vl_moe"
    with pytest.raises(UserInputError) as refused:
        narrowed(family, kept=63)
    assert str(refused.value).startswith("with this hidden size the model does not run (")
    assert str(refused.value).endswith("): ask for another ratio.")


def test_a_size_that_the_config_rejects():
    backbone = backbone_of("llava_llama_gqa")
    plan = plan_removing(backbone, hidden=42)
    reason = (
        r"cannot express the plan: The hidden size \(42\) is not a multiple of the number of attention heads \(8\)"
    )
    with pytest.raises(UserInputError, match=reason):
        pruned_model(copy.deepcopy(original("llava_llama_gqa")), backbone, plan)


def reason_of(plan, family="llava_llama_gqa"):
    with pytest.raises(UserInputError) as refused:
        plan.sizes(backbone_of(family))
    return str(refused.value)


def test_plans_that_do_not_fit():
    backbone = backbone_of("llava_llama_gqa")
    plan = plan_removing(backbone, hidden=KEPT)
    assert plan.sizes(backbone) == Sizes((0, 1, 2, 3), hidden=KEPT)
    assert reason_of(replace(plan, removed_hidden=[64])) == (
        "the plan's removed_hidden must be ascending numbers from 0 to 63, and not all of them."
    )
    assert reason_of(replace(plan, removed_hidden=[3])) == (
        "the plan removes 1 dimensions of the hidden size: removed_projector must name as many inner channels, or "
        "none where the model has none."
    )
    assert reason_of(replace(plan, removed_projector={})) == (
        "the plan's removed_projector must name every block: model.multi_modal_projector."
    )
    assert reason_of(replace(plan, removed_hidden=[])) == (
        "the plan's removed_projector goes with removed_hidden, which is empty."
    )
    assert reason_of(replace(plan, removed_hidden=[], removed_projector={})) == (
        "the plan's norm_factors goes with removed_hidden, which is empty."
    )
    norm = "model.language_model.norm"
    for name, factor in (("lm_head", 1.5), (norm, 0), (norm, -1.0), (norm, float("inf")), (norm, float("nan"))):
        assert reason_of(replace(plan, norm_factors={name: factor})) == (
            f"the plan's norm_factors of {name} must be of a norm of the model, and greater than 0: {factor}."
        )
    strange = replace(plan_removing(backbone_of("cohere2_vision"), hidden=KEPT), removed_projector={"a": [1]})
    assert reason_of(strange, "cohere2_vision") == (
        f"the plan removes {64 - KEPT} dimensions of the hidden size: removed_projector must name as many inner "
        "channels, or none where the model has none."
    )


def test_a_model_that_cannot():
    backbone = backbone_of("qwen2_vl")
    plan = replace(plan_removing(backbone, layers=[1]), removed_layers=[], removed_hidden=[1])
    assert reason_of(plan, "qwen2_vl").startswith("the plan removes hidden, which this model cannot: qwen2_vl_text ")
