"""How many dimensions of the residual stream stay, and which: against counts of the built models."""

import json
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from families import FAMILIES

from optimum_mllm_prune.backbone import Backbone, Sizes, model_class_of
from optimum_mllm_prune.backbone.skeleton import count_backbone_parameters, count_parameters
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance import Scores
from optimum_mllm_prune.planning import PruningPlan, account, make_plan


@cache
def backbone_of(family):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config)


def scores_for(backbone, **changes):
    generator = torch.Generator().manual_seed(0)
    tensors = {"hidden": torch.rand(64, generator=generator), "projector": torch.rand(1, 64, generator=generator)}
    tensors = {kind: tensor for kind, tensor in (tensors | changes).items() if tensor is not None}
    return Scores(tensors, {"hidden": "activation"}, backbone.fingerprint)


def wish(**values):
    return PruningConfig(**{"method": "hidden", **values})


def reason_of(call):
    with pytest.raises(UserInputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@cache
def shares_of(family):
    """Every size that can be said, to the share of the backbone that goes with it."""
    backbone = backbone_of(family)
    whole = Sizes(tuple(range(backbone.num_layers)))
    counts = {n: count_backbone_parameters(backbone.built(replace(whole, hidden=n))) for n in range(8, 64, 8)}
    return {size: 1 - count / backbone.backbone_parameters for size, count in counts.items()}


@pytest.mark.parametrize("family", ["llava_llama_tied", "qwen3_vl"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.55])
def test_the_size_is_the_nearest_that_can_be_said(family, ratio):
    backbone, shares = backbone_of(family), shares_of(family)
    made = account(backbone, wish(ratio=ratio))
    nearest = min(shares, key=lambda size: abs(shares[size] - ratio))
    assert made.sizes == Sizes(tuple(range(backbone.num_layers)), hidden=nearest)
    assert made.ratio == {"requested": ratio, "achieved": round(shares[nearest], 6)}
    assert made.config_changes["hidden_size"] == nearest
    assert made.notes == [
        f"hidden size: 64 -> {nearest} in all layers, embeddings, head and projector, rounded to a multiple of 8"
    ]


def test_parameters_of_the_whole_model():
    backbone = backbone_of("llava_llama_gqa")
    wanted = count_parameters(backbone.built(Sizes((0, 1, 2, 3), hidden=40)))
    made = account(backbone, wish(target_params=wanted))
    assert (made.sizes.hidden, made.parameters["after"]) == (40, wanted)


def test_the_weakest_go():
    backbone = backbone_of("llava_llama_gqa")
    scores = scores_for(backbone)
    plan = make_plan(backbone, wish(ratio=0.4), scores)
    gone = 64 - plan.config_changes["hidden_size"]
    assert plan.removed_hidden == sorted(scores.tensors["hidden"].argsort()[:gone].tolist())
    assert plan.removed_projector == {
        "model.multi_modal_projector": sorted(scores.tensors["projector"][0].argsort()[:gone].tolist())
    }
    assert plan.norm_factors == {}
    assert (plan.method, plan.removed_layers, plan.removed_heads, plan.removed_channels) == ("hidden", [], {}, {})
    assert plan.sizes(backbone).hidden == 64 - gone
    assert PruningPlan.from_dict(json.loads(plan.to_json())) == plan
    older = {key: value for key, value in asdict(plan).items() if not key.startswith(("removed_h", "removed_p"))}
    older |= {"removed_heads": {}}
    assert PruningPlan.from_dict(older).removed_hidden == []


def test_norms_make_up_for_what_goes_from_under_their_root():
    backbone = backbone_of("llava_llama_gqa")
    energy = torch.rand(9, 64, generator=torch.Generator().manual_seed(1))
    energy[3] = 0
    plan = make_plan(backbone, wish(ratio=0.4), scores_for(backbone, hidden_energy=energy))
    assert plan.norm_factors.keys() == set(backbone.hidden.norms) - {backbone.hidden.norms[3]}
    for name, row in zip(backbone.hidden.norms, energy.tolist(), strict=True):
        left = [value for i, value in enumerate(row) if i not in plan.removed_hidden]
        assert plan.norm_factors.get(name, 0) == pytest.approx((sum(left) / len(left)) ** 0.5, abs=1e-6)
    low, high = min(plan.norm_factors.values()), max(plan.norm_factors.values())
    assert plan.notes[-1] == (
        f"norms multiplied by {low:.3f} to {high:.3f}, so that they give what they gave on the calibration rows"
    )
    assert PruningPlan.from_dict(json.loads(plan.to_json())) == plan
    with pytest.raises(UserInputError) as refused:
        make_plan(backbone, wish(ratio=0.4), scores_for(backbone, hidden_energy=energy[1:]))
    assert str(refused.value) == "the scores hold none of 9 norms: calibrate again."


def test_a_model_without_a_projector_of_that_width():
    backbone = backbone_of("cohere2_vision")
    plan = make_plan(backbone, wish(ratio=0.4), scores_for(backbone, projector=None))
    assert (len(plan.removed_hidden), plan.removed_projector) == (24, {})


@pytest.mark.parametrize(
    "changes", [{"hidden": None}, {"hidden": torch.zeros(32)}, {"projector": None}, {"projector": torch.zeros(2, 64)}]
)
def test_scores_of_something_else(changes):
    backbone = backbone_of("llava_llama_gqa")
    assert reason_of(lambda: make_plan(backbone, wish(ratio=0.4), scores_for(backbone, **changes))) == (
        "the scores hold none of 64 dimensions of the hidden size: calibrate again."
    )


def test_scores_of_another_method():
    backbone = backbone_of("llava_llama_gqa")
    scores = Scores({}, {"width": "taylor", "layer": "block_influence"}, backbone.fingerprint)
    assert reason_of(lambda: make_plan(backbone, wish(), scores)) == (
        "the scores hold 'None' for method 'hidden', not 'activation': name that importance or calibrate again."
    )


def test_nothing_and_everything():
    backbone = backbone_of("llava_llama_gqa")
    assert reason_of(lambda: account(backbone, wish(ratio=0.01))) == (
        "ratio 0.0100 removes nothing: less than half a step of this architecture, ask for more."
    )
    low = backbone.parameters - backbone.backbone_parameters
    assert reason_of(lambda: account(backbone_of("llava_llama_biased"), wish(ratio=0.999))) == (
        "ratio 0.999 would remove everything: what goes by the hidden size is 0.992 of the language backbone, "
        "ask for less."
    )
    assert account(backbone, wish(target_params=low + backbone.backbone_parameters // 2)).sizes.hidden in (32, 40)


def test_a_hidden_size_that_cannot_be_smaller():
    assert reason_of(lambda: account(backbone_of("lfm2_vl"), wish())) == (
        "the hidden size of this architecture cannot be changed (model.language_model.layers.0.conv.in_proj.weight "
        "goes by hidden_size but is not as long, so what it holds is not known): use method 'width' or 'layer'."
    )


def test_scaled_token_embeddings_are_told():
    assert account(backbone_of("llava_gemma"), wish(ratio=0.3)).notes[1] == (
        "token embeddings are multiplied so that they give what they gave, as the model scales them by its hidden size"
    )
