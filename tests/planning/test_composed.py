"""Two plans told as one remove what they remove one after the other."""

import copy

import pytest
import torch
from families import FAMILIES
from masking import plan_removing

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.planning.composed import composed
from optimum_mllm_prune.planning.planner import worked_out
from optimum_mllm_prune.surgery import pruned_model


def logits(model, family):
    inputs = FAMILIES[family].inputs(model.config)
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize(
    ("family", "first", "then"),
    [
        ("llava_llama_gqa", {"channels": 96}, {"channels": 64}),
        ("llava_llama_gqa", {"heads": 2}, {"heads": 1, "channels": 96}),
        ("llava_llama", {"heads": 7, "twin": True}, {"heads": 5}),
        ("llava_llama_gqa", {"layers": [1]}, {"layers": [0, 2]}),
        ("llava_llama_gqa", {"layers": [0]}, {"channels": 64}),
        ("llava_llama_gqa", {"channels": 64}, {"layers": [2]}),
        ("llava_phi3", {"channels": 96, "heads": 2}, {"channels": 56}),
    ],
)
def test_one_after_the_other(family, first, then):
    model = FAMILIES[family].build()
    backbone = Backbone.of(model)
    one = plan_removing(backbone, **first)
    between = pruned_model(copy.deepcopy(model), backbone, one)
    two = plan_removing(Backbone.of(between), seed=5, **then)
    expected = pruned_model(between, Backbone.of(between), two)
    both = worked_out(composed(one, two, backbone), backbone, ["in two steps"])
    found = pruned_model(model, backbone, both)
    assert torch.equal(logits(found, family), logits(expected, family))
    assert both.parameters["after"] == sum(p.numel() for p in expected.parameters())
    assert both.notes == ["in two steps"]
