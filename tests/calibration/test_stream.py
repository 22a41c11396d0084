"""Layers that the residual stream passes by, whatever form they give it in."""

import pytest
import torch
from families import FAMILIES
from importance.naive import batch_of
from masking import masked, plan_removing

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.stream import entering, forms_of, leaving, passed_by, patched


class Layer(torch.nn.Module):
    """Adds one, and gives as many more things as it is told to; None gives a tensor."""

    def __init__(self, more):
        super().__init__()
        self.more, self.calls = more, 0

    def forward(self, hidden_states, scale=1):
        self.calls += 1
        return hidden_states + scale if self.more is None else (hidden_states + scale, *["more"] * self.more)


class Stack(torch.nn.Module):
    """Calls each layer in another way."""

    def __init__(self, *more):
        super().__init__()
        self.layers = torch.nn.ModuleList(map(Layer, more))

    def forward(self, states, use_cache):
        for number, layer in enumerate(self.layers):
            output = layer(states) if number % 2 else layer(scale=1, hidden_states=states)
            assert layer.more is None or len(output) == layer.more + 1
            states = leaving(output)
        return states


class Given:
    inputs = {"states": torch.zeros(1, 2, 3)}  # noqa: RUF012


@pytest.mark.parametrize("gone", [[], [0], [1, 2], [0, 3], [0, 1, 2, 3]])
def test_tuples_and_tensors(gone):
    stack = Stack(None, 0, 2, None)
    forms = forms_of(stack, stack.layers, Given)
    assert forms == [None, 1, 3, None]
    with passed_by(stack.layers, gone, forms):
        assert torch.equal(stack(**Given.inputs, use_cache=False), torch.full((1, 2, 3), 4.0 - len(gone)))
    assert [layer.calls for layer in stack.layers] == [1 + (i not in gone) for i in range(4)]
    assert torch.equal(stack(**Given.inputs, use_cache=False), torch.full((1, 2, 3), 4.0))


def test_what_enters_and_what_leaves():
    one, two = torch.zeros(1), torch.ones(1)
    assert entering((one, two), {}) is entering((), {"hidden_states": one, "other": two}) is one
    assert leaving(one) is leaving((one, two)) is one


def test_a_forward_that_was_patched_already_comes_back():
    layer = Layer(None)
    with patched(layer, lambda states: states - 1):
        with patched(layer, lambda states: states - 2), pytest.raises(ValueError, match="broken off"):
            assert layer(torch.tensor(5)) == 3
            raise ValueError("broken off")
        assert layer(torch.tensor(5)) == 4
    assert layer(torch.tensor(5)) == 6
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize("family", ["llava_llama_gqa", "qwen3_vl", "qwen3_5", "mllama", "gemma4", "lfm2_vl"])
def test_it_is_what_hooks_give(family):
    """Skipped by what they are given instead of by what they would have given."""
    model = FAMILIES[family].build()
    backbone = Backbone.of(model)
    batch = batch_of(family, model.config)
    layers = model.get_submodule(backbone.layers_prefix)
    gone = [i for i in range(len(layers)) if i not in backbone.protected_layers][:2]
    with torch.no_grad():
        forms = forms_of(model, layers, batch)
        with passed_by(layers, gone, forms):
            found = model(**batch.inputs, use_cache=False).logits
        with masked(model, backbone, plan_removing(backbone, layers=gone)):
            expected = model(**batch.inputs, use_cache=False).logits
    assert torch.equal(found, expected)
