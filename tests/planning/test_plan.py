"""Plans as data: made from scores, written, read, edited, and refused where they do not fit."""

import json
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from families import FAMILIES
from masking import plan_removing

from optimum_mllm_prune.backbone import Backbone, Sizes, model_class_of
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance import Scores, by_layer
from optimum_mllm_prune.planning import PLAN_NAME, PruningPlan, make_plan


@cache
def backbone_of(family, head_unit="auto"):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config, head_unit)


def scores_for(backbone, layer="block_influence", width="taylor", seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {"layers": torch.rand(backbone.num_layers, generator=generator)}
    for group in backbone.groups()[0]:
        rows = torch.rand(len(group.sites), group.units, generator=generator)
        tensors |= by_layer(group, rows, backbone.num_layers)
    return Scores(tensors, {"layer": layer, "width": width}, backbone.fingerprint)


def width_plan(family="llava_llama_gqa", **wish):
    backbone = backbone_of(family, wish.get("head_unit", "auto"))
    return make_plan(backbone, PruningConfig(**{"ratio": 0.3, "importance": "taylor", **wish}), scores_for(backbone))


def layer_plan(family="llava_llama_gqa", layers=2):
    backbone = backbone_of(family)
    return make_plan(backbone, PruningConfig(num_layers=layers), scores_for(backbone))


def reason_of(call):
    with pytest.raises(UserInputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_layers_in_a_row_need_scores_of_runs():
    backbone, config = backbone_of("llava_llama_gqa"), PruningConfig(num_layers=2, importance="angular")
    scores = scores_for(backbone, layer="angular")
    assert reason_of(lambda: make_plan(backbone, config, scores)) == (
        "the scores hold no score for each run of 4 layers: calibrate again."
    )
    runs = torch.tensor([[0.1, 0.5, 0.7, 0.8], [0.2, 0.1, 0.9, 0.0], [0.3, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    plan = make_plan(backbone, config, replace(scores, tensors=scores.tensors | {"layer_runs": runs}))
    assert (plan.removed_layers, plan.importance) == ([1, 2], "angular")


@pytest.mark.parametrize(
    "family", ["llava_llama_gqa", "llava_phi3", "qwen3_5", "qwen2_vl", "paligemma", "idefics2", "qwen3_vl_moe"]
)
def test_every_block_loses_its_weakest_units(family):
    backbone = backbone_of(family)
    scores = scores_for(backbone)
    plan = make_plan(backbone, PruningConfig(ratio=0.3, importance="taylor"), scores)
    sizes = plan.sizes(backbone)
    for group in backbone.groups()[0]:
        kept = getattr(sizes, group.kind)
        removed = plan.removed_units(group)
        if kept is None:
            assert removed == {}
            continue
        assert list(removed) == [site.prefix for site in group.sites]
        for site, row in zip(group.sites, scores.of(group), strict=True):
            gone = removed[site.prefix]
            assert len(gone) == group.units - kept
            left = [unit for unit in range(group.units) if unit not in gone]
            assert row[gone].max() <= row[left].min()
    assert plan.removed_layers == []


def test_the_layers_with_the_lowest_scores_go():
    backbone = backbone_of("llava_llama_gqa")
    scores = scores_for(backbone)
    plan = layer_plan(layers=2)
    assert plan.removed_layers == sorted(scores.tensors["layers"].argsort()[:2].tolist())
    assert sorted(plan.kept_layers + plan.removed_layers) == [0, 1, 2, 3]
    assert plan.removed_heads == plan.removed_channels == {}
    assert plan.sizes(backbone) == Sizes(tuple(plan.kept_layers))


def test_a_plan_says_where_it_comes_from():
    backbone = backbone_of("llava_llama_gqa")
    scores = scores_for(backbone)
    config = PruningConfig(ratio=0.3, importance="taylor", base_model="someone/some-model", base_model_revision="abc")
    plan = make_plan(backbone, config, scores)
    assert plan.model == {
        "model_type": "llava",
        "class": "LlavaForConditionalGeneration",
        "fingerprint": backbone.fingerprint,
        "base_model": "someone/some-model",
        "base_model_revision": "abc",
    }
    assert (plan.method, plan.importance, plan.scores) == ("width", "taylor", scores.fingerprint)
    assert plan.config == config.to_dict()
    before, after = plan.parameters["backbone_before"], plan.parameters["backbone_after"]
    assert plan.ratio == {"requested": 0.3, "achieved": round(1 - after / before, 6)}


def test_head_units_of_a_plan():
    assert width_plan("llava_llama_gqa").head_unit == "group"
    assert width_plan("llava_llama_gqa", ratio=0.4, head_unit="query").head_unit == "query"
    assert width_plan("paligemma").head_unit == "query"
    assert width_plan("qwen2_vl").head_unit == "group"


def test_query_heads_go_evenly_from_every_group():
    plan = width_plan("llava_llama_gqa", ratio=0.4, head_unit="query")
    for gone in plan.removed_heads.values():
        assert [unit // 2 for unit in gone] == [0, 1, 2, 3]


@pytest.mark.parametrize("plan_of", [width_plan, layer_plan])
@pytest.mark.parametrize("family", ["llava_llama", "qwen3_5"])
def test_json_and_back(plan_of, family, tmp_path):
    plan = plan_of(family)
    assert PruningPlan.from_dict(json.loads(plan.to_json())) == plan
    plan.save(tmp_path)
    assert PruningPlan.load(tmp_path) == PruningPlan.load(tmp_path / PLAN_NAME) == plan
    assert json.loads(plan.to_json()) == asdict(plan)


def test_lists_of_indexes_stand_on_one_line():
    lines = width_plan().to_json().split("\n")
    (line,) = [line for line in lines if '"model.language_model.layers.0.mlp"' in line]
    assert json.loads("{" + line.rstrip(",") + "}")["model.language_model.layers.0.mlp"]


def test_a_twin_is_written_down():
    plan = width_plan("llava_llama", ratio=0.1)
    assert plan.twin == "mistral"
    assert plan.config_changes["model_type"] == "mistral"
    assert plan.sizes(backbone_of("llava_llama")).twin
    assert width_plan("llava_llama", ratio=0.1, allow_twin=False).twin is None


def test_the_fingerprint_is_of_names_and_shapes():
    same = Backbone(backbone_of("llava_llama").model_class, FAMILIES["llava_llama"].config())
    assert same.fingerprint == backbone_of("llava_llama").fingerprint
    assert len({backbone_of(family).fingerprint for family in FAMILIES}) >= len(FAMILIES) - 1


def test_scores_of_another_model():
    backbone = backbone_of("llava_llama_gqa")
    scores = scores_for(backbone_of("llava_llama"))
    assert reason_of(lambda: make_plan(backbone, PruningConfig(importance="taylor"), scores)) == (
        "the scores were made for another model: calibrate this one."
    )


def test_scores_of_another_metric():
    backbone = backbone_of("llava_llama_gqa")
    wish = PruningConfig(importance="wanda")
    assert reason_of(lambda: make_plan(backbone, wish, scores_for(backbone))) == (
        "the scores hold 'taylor' for method 'width', not 'wanda': name that importance or calibrate again."
    )


@pytest.mark.parametrize(("made_with", "wished"), [("query", "auto"), ("auto", "query"), ("query", "group")])
def test_scores_of_another_head_unit(made_with, wished):
    scores = scores_for(backbone_of("llava_llama_gqa", made_with))
    wish = PruningConfig(ratio=0.4, importance="taylor", head_unit=wished)
    line = reason_of(lambda: make_plan(backbone_of("llava_llama_gqa", wished), wish, scores))
    assert line.startswith("the scores are of ") and line.endswith(
        "take the head unit they were made with, or calibrate again."
    )


@pytest.mark.parametrize("kind", ["heads", "channels", "layers"])
def test_scores_that_lack_a_kind(kind):
    scores = scores_for(backbone_of("llava_llama_gqa"))
    del scores.tensors[kind]
    wish = PruningConfig(num_layers=1) if kind == "layers" else PruningConfig(ratio=0.4, importance="taylor")
    line = reason_of(lambda: make_plan(backbone_of("llava_llama_gqa"), wish, scores))
    assert line.startswith("the scores hold no ") and line.endswith(": calibrate again.")


def test_query_heads_that_go_unevenly_from_the_groups():
    backbone = backbone_of("llava_llama_gqa", "query")
    plan = width_plan("llava_llama_gqa", ratio=0.4, head_unit="query")
    name, gone = next(iter(plan.removed_heads.items()))
    assert gone[0] in (0, 1) and gone[1] in (2, 3)
    # Both query heads of the first group, none of the second: as many in all.
    uneven = replace(plan, removed_heads=plan.removed_heads | {name: [0, 1, *gone[2:]]})
    assert reason_of(lambda: uneven.sizes(backbone)) == (
        f"the plan's removed_heads of {name} must be as many from each of 4 key-value groups."
    )


@pytest.mark.parametrize("data", [None, [], "plan", {}, {"method": "layer"}, {"model": {}, "removed_layers": []}])
def test_what_is_no_plan(data):
    assert reason_of(lambda: PruningPlan.from_dict(data)) == (
        "the plan is not a pruning plan: give the pruning_plan.json that a run has written."
    )


def test_keys_that_are_wrong():
    data = asdict(layer_plan())
    del data["ratio"]
    data["removed_tokens"] = []
    assert reason_of(lambda: PruningPlan.from_dict(data)) == (
        "the plan has unknown keys ['removed_tokens'] and lacks ['ratio']: write it again."
    )


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("model", "llava", "an object of texts"),
        ("removed_layers", 3, "a list of whole numbers"),
        ("removed_heads", [1, 2], "an object of lists of whole numbers"),
        ("removed_channels", None, "an object of lists of whole numbers"),
        ("num_layers", "4", "a whole number"),
        ("parameters", [], "an object of whole numbers"),
        # What the inside holds matters as well.
        ("notes", [1], "a list of texts"),
        ("method", ["width"], "a text"),
        ("ratio", {"requested": "x"}, "an object of numbers"),
        ("parameters", {"before": 1.5}, "an object of whole numbers"),
        ("removed_layers", [True], "a list of whole numbers"),
        ("removed_heads", {"a": [None]}, "an object of lists of whole numbers"),
        ("model", {"base_model": 3}, "an object of texts"),
        ("twin", 3, "a text or null"),
        ("command", [], "a text or null"),
        ("format", "1", "a whole number"),
    ],
)
def test_values_of_another_kind(key, value, kind):
    data = asdict(layer_plan()) | {key: value}
    assert reason_of(lambda: PruningPlan.from_dict(data)) == f"the plan's {key} must be {kind}: write it again."


def test_another_format():
    data = asdict(layer_plan()) | {"format": 2}
    assert reason_of(lambda: PruningPlan.from_dict(data)) == (
        "the plan has format 2, this version reads 1: write it again."
    )


def test_optional_keys_may_be_missing():
    data = asdict(layer_plan())
    for key in ("notes", "scores", "config", "command", "format"):
        del data[key]
    assert PruningPlan.from_dict(data).removed_layers == layer_plan().removed_layers


def test_no_plan(tmp_path):
    assert reason_of(lambda: PruningPlan.load(tmp_path)) == (
        f"no plan at '{tmp_path}': give a pruning_plan.json or the folder that holds it."
    )


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_plan_that_is_not_json(content, tmp_path):
    (tmp_path / PLAN_NAME).write_bytes(content)
    assert reason_of(lambda: PruningPlan.load(tmp_path)).startswith("the plan 'pruning_plan.json' is not JSON (")


def test_a_plan_of_another_model():
    plan = layer_plan("llava_llama_gqa")
    before = f"{plan.parameters['before']:,}"
    assert reason_of(lambda: plan.sizes(backbone_of("llava_qwen2"))) == (
        f"the plan was made for another model (llava, {before} parameters): plan again for this one."
    )


@pytest.mark.parametrize("layers", [[4], [-1], [1, 1], [2, 1], [0, 1, 2, 3], ["1"], [1.0]])
def test_layers_that_are_none(layers):
    plan = replace(layer_plan(), removed_layers=layers)
    assert reason_of(lambda: plan.sizes(backbone_of("llava_llama_gqa"))) == (
        "the plan's removed_layers must be ascending numbers from 0 to 3, and not all of them."
    )


def test_another_depth():
    plan = replace(layer_plan(), num_layers=3)
    assert reason_of(lambda: plan.sizes(backbone_of("llava_llama_gqa"))) == (
        "the plan's num_layers is 3, the model has 4."
    )


@pytest.mark.parametrize("family", ["llava_gemma", "llava_llama_biased", "llava_llama_gqa"])
def test_a_twin_of_another_model(family):
    twin = "gemma" if family == "llava_llama_gqa" else "mistral"
    plan = replace(layer_plan(family), twin=twin)
    assert reason_of(lambda: plan.sizes(backbone_of(family))) == (
        f"the plan's twin '{twin}' is none of this model: remove it or plan again."
    )


def test_a_protected_layer():
    backbone = backbone_of("qwen3_vl")
    plan = plan_removing(backbone, layers=[1])
    assert reason_of(lambda: plan.sizes(backbone)) == (
        "the plan removes layer 1: vision features are added after it (DeepStack)."
    )


def changed(plan, **units):
    """The plan with other channels for one block; None takes the block out."""
    removed = {**plan.removed_channels, **units}
    return replace(plan, removed_channels={name: gone for name, gone in removed.items() if gone is not None})


FIRST_MLP = "model.language_model.layers.0.mlp"


def test_a_block_that_is_missing_or_strange():
    backbone = backbone_of("llava_llama_gqa")
    for plan, block in (
        (changed(width_plan(), **{FIRST_MLP: None}), FIRST_MLP),
        (changed(width_plan(), other=[1]), "other"),
    ):
        assert reason_of(lambda plan=plan: plan.sizes(backbone)) == (
            f"the plan's removed_channels must name every block: {block}."
        )


@pytest.mark.parametrize("units", [[96], [-1], [3, 3], list(range(96)), "all", 5])
def test_units_that_are_none(units):
    plan = changed(width_plan(), **{FIRST_MLP: units})
    assert reason_of(lambda: plan.sizes(backbone_of("llava_llama_gqa"))) == (
        f"the plan's removed_channels of {FIRST_MLP} must be ascending numbers from 0 to 95, and not all of them."
    )


def test_blocks_that_lose_unlike_numbers():
    plan = changed(width_plan(), **{FIRST_MLP: [0]})
    assert reason_of(lambda: plan.sizes(backbone_of("llava_llama_gqa"))) == (
        "the plan's removed_channels differ in number between layers: a config cannot say that."
    )


def test_units_that_the_model_cannot_lose():
    plan = replace(width_plan("qwen2_vl"), removed_heads={"model.language_model.layers.0.self_attn": [0]})
    assert reason_of(lambda: plan.sizes(backbone_of("qwen2_vl"))) == (
        "the plan removes heads, which this model cannot: qwen2_vl_text derives the head size as "
        "hidden_size / num_attention_heads, so heads cannot go alone"
    )


@pytest.mark.parametrize(
    ("key", "kind"), [("config", "an object"), ("notes", "a list of texts"), ("config_changes", "an object")]
)
def test_null_is_no_value(key, kind):
    data = asdict(width_plan("llava_llama_gqa")) | {key: None}
    with pytest.raises(UserInputError) as error:
        PruningPlan.from_dict(data)
    assert str(error.value) == f"the plan's {key} must be {kind}: write it again."


@pytest.mark.parametrize("importance", ["foo", "block_influence"])
def test_an_importance_of_another_method(importance):
    data = asdict(width_plan("llava_llama_gqa")) | {"importance": importance}
    with pytest.raises(UserInputError) as error:
        PruningPlan.from_dict(data)
    assert str(error.value) == (
        f"the plan's importance '{importance}' does not go with its method 'width': write it again."
    )


def test_a_method_that_is_none():
    data = asdict(width_plan()) | {"method": "depth"}
    with pytest.raises(UserInputError) as error:
        PruningPlan.from_dict(data)
    assert str(error.value) == "the plan's method 'depth' is none of layer, width, mixed, hidden: write it again."
