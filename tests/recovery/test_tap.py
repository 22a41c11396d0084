"""Models run up to their heads, on every family."""

from functools import cache

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of
from peft import LoraConfig, get_peft_model

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.recovery.tap import Tap


FAMILY = "llava_llama_gqa"


@cache
def model_of(family):
    return FAMILIES[family].build()


def layers_of(model):
    return model.get_submodule(Backbone.of(model).layers_prefix)


def inputs_of(family):
    return batch_of(family, model_of(family).config).inputs


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_head_of_final_states_is_the_models_logits(family):
    model = model_of(family)
    tapped = Tap(model, layers_of(model))(**inputs_of(family))
    torch.testing.assert_close(tapped.head(tapped.final), model(**inputs_of(family)).logits, rtol=1e-4, atol=1e-5)
    assert tapped.layers == {}


@pytest.mark.parametrize("family", ["llava_gemma2", "cohere2_vision", "llava_llama_gqa"])
@torch.no_grad()
def test_in_bfloat16_as_well(family):
    model = FAMILIES[family].build(dtype=torch.bfloat16)
    inputs = batch_of(family, model.config).to("cpu", torch.bfloat16).inputs
    tapped = Tap(model, layers_of(model))(**inputs)
    logits = model(**inputs).logits
    torch.testing.assert_close(tapped.head(tapped.final), logits, rtol=2e-2, atol=2e-2 * logits.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_are_what_layers_give(family):
    model = model_of(family)
    layers = layers_of(model)
    watched, given = [0, len(layers) - 1], {}
    handles = [
        layers[number].register_forward_hook(
            lambda _, __, output, number=number: given.update(
                {number: output if isinstance(output, torch.Tensor) else output[0]}
            )
        )
        for number in watched
    ]
    model(**inputs_of(family))
    for handle in handles:
        handle.remove()
    tapped = Tap(model, layers, watched)(**inputs_of(family))
    assert tapped.layers.keys() == given.keys()
    for number, states in tapped.layers.items():
        assert states.shape == tapped.final.shape
        torch.testing.assert_close(states, given[number])


def test_the_heads_logits_of_one_position_are_made_and_no_more():
    model, made = model_of(FAMILY), []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, output: made.append(output.shape[:2]))
    Tap(model, layers_of(model))(**inputs_of(FAMILY))
    handle.remove()
    assert made == [(1, 1)]


def hooks_of(model):
    return [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]


@torch.no_grad()
def test_no_hook_stays():
    model = model_of(FAMILY)
    # transformers puts hooks of its own in the first time.
    model(**inputs_of(FAMILY))
    before = hooks_of(model)
    tap = Tap(model, layers_of(model), [0, 1])
    tap(**inputs_of(FAMILY))
    assert hooks_of(model) == before
    with pytest.raises(ValueError, match="input_ids"):
        tap(input_ids=None)
    assert hooks_of(model) == before


@torch.no_grad()
def test_installed_and_removed():
    model = FAMILIES[FAMILY].build()
    inputs, before = inputs_of(FAMILY), model(**inputs_of(FAMILY)).logits
    tap = Tap(model, layers_of(model))
    tap.install()
    assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(model(**inputs, objective=lambda tapped: tapped.head(tapped.final)), before)
    tap.remove()
    assert "forward" not in vars(model)
    assert model.forward.__func__ is type(model).forward
    assert torch.equal(model(**inputs).logits, before)


def test_a_forward_of_somebody_else_is_given_back():
    """accelerate replaces the forward of a model that is spread over devices."""
    model = FAMILIES[FAMILY].build()
    own = model.forward

    def theirs(**inputs):
        return own(**inputs)

    model.forward = theirs
    tap = Tap(model, layers_of(model))
    tap.install()
    assert model(**inputs_of(FAMILY), objective=lambda tapped: tapped.final).shape[0] == 2
    tap.remove()
    assert model.forward is theirs


@torch.no_grad()
def test_under_peft():
    model = FAMILIES[FAMILY].build()
    layers = layers_of(model)
    tap = Tap(model, layers, [1])
    tap.install()
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config).eval()
    tapped = wrapped(**inputs_of(FAMILY), objective=lambda tapped: tapped)
    logits = wrapped(**inputs_of(FAMILY)).logits
    torch.testing.assert_close(tapped.head(tapped.final), logits)
    assert (logits - model_of(FAMILY)(**inputs_of(FAMILY)).logits).abs().max() > 1e-2
    assert tapped.layers.keys() == {1}
