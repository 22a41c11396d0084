"""A walk sees what whole passes see, whatever the architecture does between its layers."""

from functools import cache

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.engine import evaluating
from optimum_mllm_prune.calibration.walk import Walk, output_of


@cache
def made(family):
    return FAMILIES[family].build(dtype=torch.float32)


def whole(model, module, batch, of_input):
    seen = []
    look = (lambda _, args: seen.append(args[0])) if of_input else (lambda _, __, output: seen.append(output))
    handle = (module.register_forward_pre_hook if of_input else module.register_forward_hook)(look)
    with torch.no_grad():
        model(**batch.inputs, use_cache=False)
    handle.remove()
    return seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_sees_what_whole_passes_see(family):
    model = made(family)
    layers = model.get_submodule(Backbone.of(model).layers_prefix)
    batches = [batch_of(family, model.config)]
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, batches)
        for layer in layers:
            for of_input in (False, True):
                leaf = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
                expected = whole(model, leaf, batches[0], of_input)
                found = walk.met(0, [leaf])[leaf][0 if of_input else 1]
                assert torch.allclose(found, expected, atol=1e-4)
            walk.advance()


def test_most_architectures_can_be_walked():
    def skips(family):
        model = made(family)
        with evaluating(model), torch.no_grad():
            layers = model.get_submodule(Backbone.of(model).layers_prefix)
            return Walk(model, layers, [batch_of(family, model.config)]).skips

    assert all(skips(family) for family in ("llava_llama_gqa", "qwen3_vl", "gemma3", "llava_phi3"))


def test_nothing_is_left_behind():
    model = made("llava_llama_gqa")
    layers = model.get_submodule(Backbone.of(model).layers_prefix)
    batch = batch_of("llava_llama_gqa", model.config)
    with torch.no_grad():
        before = model(**batch.inputs).logits
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, [batch])
        walk.advance()
        walk.see(0, layers[1], output_of)
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layers.modules())
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs).logits, before)


def test_a_module_that_is_never_reached():
    model = made("llava_llama_gqa")
    layers = model.get_submodule(Backbone.of(model).layers_prefix)
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, [batch_of("llava_llama_gqa", model.config)])
        with pytest.raises(RuntimeError, match="does not reach the module"):
            walk.see(0, torch.nn.Linear(1, 1), output_of)


def test_modules_are_met_in_the_order_they_run_in():
    """Phi-3 declares `o_proj` before `qkv_proj`; a module that does not run is left out, and the pass ends early."""
    model = made("llava_phi3")
    layers = model.get_submodule(Backbone.of(model).layers_prefix)
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, [batch_of("llava_phi3", model.config)])
        names = {m: n for n, m in layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
        met = walk.met(0, [*names, torch.nn.Linear(1, 1)])
        assert [names[module].rpartition(".")[2] for module in met] == [
            "qkv_proj",
            "o_proj",
            "gate_up_proj",
            "down_proj",
        ]
        reached = []
        layers[0].mlp.register_forward_pre_hook(lambda *_: reached.append(1))
        walk.met(0, [layers[0].self_attn.o_proj])
        assert not reached


FEW = ["llava_llama_gqa", "qwen3_vl", "gemma4"]


def steps(family):
    """A walk with one batch twice, at every layer in turn: model, batch, walk, layer, and the layer's last map."""
    model = made(family)
    layers = model.get_submodule(Backbone.of(model).layers_prefix)
    batch = batch_of(family, model.config)
    with evaluating(model), torch.no_grad():
        walk = Walk(model, layers, [batch, batch])
        for layer in layers:
            yield model, batch, walk, layer, [m for m in layer.modules() if isinstance(m, torch.nn.Linear)][-1]


@pytest.mark.parametrize("family", FEW)
def test_who_watches_is_told_on_the_way(family):
    for model, batch, walk, layer, leaf in steps(family):
        told = {}
        walk.advance({leaf: told.__setitem__})
        assert sorted(told) == [0, 1]
        assert torch.allclose(told[1], whole(model, leaf, batch, True), atol=1e-4)
        assert torch.allclose(walk.stream(1), whole(model, layer, batch, False), atol=1e-4)


@pytest.mark.parametrize("family", FEW)
def test_seen_on_the_way_a_layer_is_not_run_again(family):
    for model, batch, walk, layer, leaf in steps(family):
        for number in range(2):
            given, gave = walk.met(number, [leaf], on_the_way=True)[leaf]
            assert torch.allclose(given, whole(model, leaf, batch, True), atol=1e-4)
            assert torch.allclose(gave, whole(model, leaf, batch, False), atol=1e-4)
        passes = []
        counter = model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        walk.advance()
        counter.remove()
        assert not passes
        assert torch.allclose(walk.stream(1), whole(model, layer, batch, False), atol=1e-4)
