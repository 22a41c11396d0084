"""Merged layers: what the original computes with weights merged by hand and layers skipped; reports, and refusals."""

import copy
import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES
from importance import naive_layers
from masking import masked, plan_removing

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.commands.summary import repair_text
from optimum_mllm_prune.repair import Merge, merge, repair_method, rows_to_repair
from optimum_mllm_prune.surgery import pruned_model


MERGE = PruningConfig(num_layers=2, importance="magnitude", repair="merge")
# A family and layers that go: one, neighbours, two apart; a hybrid, DeepStack, cross-attention, experts.
CASES = [
    ("llava_llama_gqa", [2]),
    ("llava_llama_biased", [1, 2, 3]),
    ("llava_gemma2", [2, 3]),
    ("gemma3", [1, 2, 4]),
    ("qwen3_5", [1, 4]),
    ("qwen3_vl", [2, 4]),
    ("mllama", [3]),
    ("aria", [1, 3]),
]


@cache
def original(family, dtype=torch.float32):
    return FAMILIES[family].build(dtype=dtype)


def merging(backbone, layers):
    plan = plan_removing(backbone, layers=layers)
    return replace(plan, config=MERGE.to_dict())


def merged_model(family, layers):
    model = original(family)
    backbone = Backbone.of(model)
    plan = merging(backbone, layers)
    pruned = pruned_model(model, backbone, plan, keep_original=True)
    return backbone, plan, pruned, merge(model, pruned, backbone, plan)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()].double()


@pytest.mark.parametrize(("family", "layers"), CASES)
def test_it_is_the_original_merged_by_hand_and_skipped(family, layers):
    backbone, plan, pruned, _ = merged_model(family, layers)
    by_hand = copy.deepcopy(original(family)).double()
    naive_layers.merge_by_hand(by_hand.get_submodule(backbone.layers_prefix), layers)
    # Experts do not run in float64.
    dtype = torch.float32 if family == "aria" else torch.float64
    by_hand.to(dtype)
    for inputs in (FAMILIES[family].inputs(by_hand.config), FAMILIES[family].text_inputs(by_hand.config)):
        wide = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        with masked(by_hand, backbone, plan):
            expected = logits(by_hand, wide)
        with masked(original(family), backbone, plan) as skipped:
            effect = (logits(skipped, inputs) - expected).abs().max()
        assert (logits(pruned, inputs) - expected).abs().max() < 1e-3 < 1e-2 < effect


def test_the_original_is_not_touched():
    model = original("llava_llama_gqa")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backbone, plan, pruned, done = merged_model("llava_llama_gqa", [2])
    assert done == Merge({1: [2]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    theirs, ours = dict(model.named_parameters()), dict(pruned.named_parameters())
    for name, weight in theirs.items():
        own = backbone.renamed(name, plan.kept_layers)
        if own is not None:
            # Only the layer that took one up has weights of its own.
            shared = ours[own].data_ptr() == weight.data_ptr()
            assert shared == (backbone.layer_of(name) != 1)


def test_sixteen_bits_and_frozen_weights_stay_so():
    model = original("llava_llama_gqa", torch.bfloat16).requires_grad_(False)
    backbone = Backbone.of(model)
    plan = merging(backbone, [1, 2])
    pruned = pruned_model(model, backbone, plan, keep_original=True).requires_grad_(False)
    merge(model, pruned, backbone, plan)
    assert {(weight.dtype, weight.requires_grad) for weight in pruned.parameters()} == {(torch.bfloat16, False)}


def pruner():
    return MLLMPruner(tiny_llava.moved(0.01), tiny_llava.processor())


class TestPruner:
    def test_importance_merge_merges(self, tmp_path):
        made = pruner()
        whole = copy.deepcopy(made.model)
        plan = made.plan(PruningConfig(num_layers=3, importance="merge", num_samples=4), tiny_llava.rows())
        made.prune(plan)
        report = made.save_pretrained(tmp_path / "out")
        groups = naive_groups(plan.removed_layers)
        assert made.repair.layers == groups
        assert report.repair == {"method": "merge", "merged": {str(into): others for into, others in groups.items()}}
        assert json.loads((tmp_path / "out" / "pruning_report.json").read_text())["repair"] == report.repair
        assert report.verification.max_abs_logit_difference == 0
        card = (tmp_path / "out" / "README.md").read_text()
        (line,) = [line for line in card.splitlines() if line.startswith("- merged layers: ")]
        said = "; ".join(f"{', '.join(map(str, others))} into {into}" for into, others in groups.items())
        assert line == f"- merged layers: {said} (numbered as in the original)"
        naive_layers.merge_by_hand(whole.model.language_model.layers, plan.removed_layers)
        for new, old in enumerate(plan.kept_layers):
            ours = dict(made.model.model.language_model.layers[new].named_parameters())
            theirs = dict(whole.model.language_model.layers[old].named_parameters())
            assert all(torch.allclose(weight, theirs[name], atol=1e-6) for name, weight in ours.items())

    def test_any_importance_can_choose_what_is_merged(self):
        made = pruner()
        plan = made.plan(MERGE)
        made.prune(plan)
        assert made.repair.layers == naive_groups(plan.removed_layers)
        assert 0 not in plan.removed_layers
        assert "0 (no layer is before it to be merged into)" in plan.notes[1]

    @pytest.mark.parametrize(("wanted", "rows"), [("auto", ()), ("merge", ()), ("none", None)])
    def test_no_row_is_asked_for(self, wanted, rows):
        config = PruningConfig(num_layers=2, importance="merge", repair=wanted)
        plan = plan_removing(Backbone.of(original("llava_llama_gqa")), layers=[1, 2])
        plan = replace(plan, config=config.to_dict())
        assert rows_to_repair(plan, None, None) == rows
        assert repair_method(config) is None


def naive_groups(removed):
    groups = {}
    for layer in removed:
        groups.setdefault(max(i for i in range(layer) if i not in removed), []).append(layer)
    return groups


class TestRefused:
    @pytest.mark.parametrize(
        ("family", "layer", "reason"),
        [
            ("llava_llama_gqa", 0, "no layer is before it to be merged into"),
            ("qwen3_5", 3, "its weights are not those of the layer before it, so the two cannot be merged"),
        ],
    )
    def test_a_plan_with_a_layer_that_cannot_be_merged(self, family, layer, reason):
        backbone = Backbone.of(original(family))
        with pytest.raises(UserInputError) as told:
            merging(backbone, [layer]).sizes(backbone)
        assert str(told.value) == f"the plan removes layer {layer}: {reason}."

    def test_a_plan_that_narrows_too(self):
        backbone = Backbone.of(original("llava_llama_gqa"))
        plan = plan_removing(backbone, layers=[2], channels=64)
        plan = replace(plan, config=MERGE.to_dict())
        with pytest.raises(UserInputError) as told:
            plan.sizes(backbone)
        assert str(told.value) == "the plan merges layers and narrows those that stay: take out one of the two."


def test_what_the_command_says():
    assert repair_text(Merge({1: [2, 3], 5: [6]})) == "merged layers: 2, 3 into 1; 6 into 5"
