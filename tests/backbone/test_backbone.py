import copy
from functools import cache

import pytest
import torch
import transformers
from backbone.llava_7b import BACKBONE_PARAMETERS, PARAMETERS, llava_7b, llava_7b_config
from families import FAMILIES, head_choices
from families.configs import build_llava_config, text_config

from optimum_mllm_prune.backbone import (
    Backbone,
    ConfigRejectedError,
    NotExpressibleError,
    Sizes,
    model_class_of,
)
from optimum_mllm_prune.backbone.text_config import edited, text_path
from optimum_mllm_prune.backbone.twin import as_twin, twin_name
from optimum_mllm_prune.errors import UserInputError


@cache
def backbone_of(family, head_unit="auto"):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config, head_unit)


def with_text(model_type, **changes):
    config = build_llava_config(text_config(model_type, **changes))
    return Backbone(model_class_of(config), config)


def roles(backbone, kind, layer):
    """Names of the tensors that one layer's units own, the reader last, without the block's name."""
    site = next(site for site in getattr(backbone, kind).sites if site.layer == layer)
    assert all(axis.tensor.startswith(site.prefix + ".") for axis in site.axes)
    return [axis.tensor.removeprefix(site.prefix + ".") for axis in site.axes]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_layers_are_found_and_not_the_vision_tower(family):
    model = FAMILIES[family].build()
    backbone = Backbone.of(model)
    layers = model.get_submodule(backbone.layers_prefix)
    assert len(layers) == backbone.num_layers == model.config.get_text_config(decoder=True).num_hidden_layers
    assert any(layers is module for module in model.get_decoder().modules())
    assert "vision" not in backbone.layers_prefix
    assert len(backbone.layer_kinds) == backbone.num_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_from_the_config(family):
    model = FAMILIES[family].build()
    backbone = Backbone.of(model)
    assert backbone.parameters == sum(p.numel() for p in model.parameters())
    own = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    distinct = {p for module in own for p in module.parameters()}
    assert backbone.backbone_parameters == sum(p.numel() for p in distinct) < backbone.parameters


def with_biases(names):
    """Each weight and its bias, but for the reader, whose bias belongs to no unit."""
    *writers, reader = names
    return [name for w in writers for name in (w, w.replace("weight", "bias"))] + [reader]


SEPARATE = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"]
GATED = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]


@pytest.mark.parametrize(
    ("family", "heads", "channels"),
    [
        ("llava_llama", SEPARATE, GATED),
        ("llava_llama_biased", with_biases(SEPARATE), with_biases(GATED)),
        ("llava_qwen2", with_biases(SEPARATE), GATED),
        # The norms of queries and keys are over one head each: they stay.
        ("llava_qwen3", SEPARATE, GATED),
        ("llava_phi", with_biases([*SEPARATE[:3], "dense.weight"]), with_biases(["fc1.weight", "fc2.weight"])),
        ("llava_phi3", ["qkv_proj.weight", "o_proj.weight"], ["gate_up_proj.weight", "down_proj.weight"]),
        ("qwen3_5", SEPARATE, GATED),
        ("lfm2_vl", [*SEPARATE[:3], "out_proj.weight"], ["w1.weight", "w3.weight", "w2.weight"]),
        # All query heads share one key and one value.
        ("paligemma", ["q_proj.weight", "o_proj.weight"], GATED),
    ],
)
def test_projections_are_told_by_shape(family, heads, channels):
    backbone = backbone_of(family)
    last = backbone.num_layers - 1
    assert roles(backbone, "heads", last) == heads
    assert roles(backbone, "channels", last) == channels


@pytest.mark.parametrize(
    ("family", "head_unit", "units", "unit", "stride", "keys"),
    [
        ("llava_llama", "auto", 8, "attention head", 1, {"num_attention_heads": 8, "num_key_value_heads": 8}),
        ("llava_llama_gqa", "auto", 4, "key-value group", 1, {"num_attention_heads": 8, "num_key_value_heads": 4}),
        ("llava_llama_gqa", "query", 8, "query head", 4, {"num_attention_heads": 8}),
        ("paligemma", "auto", 8, "query head", 1, {"num_attention_heads": 8}),
    ],
)
def test_what_a_head_unit_is(family, head_unit, units, unit, stride, keys):
    heads = backbone_of(family, head_unit).heads
    assert (heads.units, heads.unit, heads.stride, heads.keys) == (units, unit, stride, keys)


def test_blocks_are_only_where_they_are():
    assert [site.layer for site in backbone_of("qwen3_5").heads.sites] == [2, 5]
    assert [site.layer for site in backbone_of("lfm2_vl").heads.sites] == [2, 4]
    assert [site.layer for site in backbone_of("qwen3_vl_moe").channels.sites] == [1]


def test_norms_over_all_heads_are_refused():
    with pytest.raises(
        NotExpressibleError, match="q_norm normalises over all units together, so the rest would change"
    ):
        with_text("olmo2").heads  # noqa: B018


def test_a_single_head_cannot_go():
    backbone = with_text("llama", num_attention_heads=1, num_key_value_heads=1, head_dim=16)
    assert head_choices(backbone) == {}


def test_an_unknown_reason_is_never_given_for_what_works():
    for family in ("llava_llama", "llava_phi3", "qwen3_5"):
        found, reasons = backbone_of(family).groups()
        assert [group.kind for group in found] == ["heads", "channels"]
        assert reasons == []


def test_the_size_of_llava_7b():
    assert llava_7b().parameters == PARAMETERS
    assert llava_7b().backbone_parameters == BACKBONE_PARAMETERS


def test_llava_7b_needs_the_twin_unless_heads_divide_the_hidden_size():
    choices = head_choices(llava_7b())
    assert list(choices) == list(range(31, 0, -1))
    assert [kept for kept, twin in choices.items() if not twin] == [16, 8, 4, 2, 1]
    assert choices[26]


def test_the_pruned_llava_7b_says_what_it_is():
    sizes = Sizes(tuple(range(32)), heads=26, channels=9000, twin=True)
    text = llava_7b().config_for(sizes).text_config
    assert (text.model_type, text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (
        "mistral",
        26,
        26,
        128,
    )
    assert (text.intermediate_size, text.hidden_size, text.num_hidden_layers, text.vocab_size) == (
        9000,
        4096,
        32,
        32064,
    )
    assert (text.sliding_window, text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (None, 1e-5, 10000.0)
    assert llava_7b().config.text_config.model_type == "llama"
    with pytest.raises(NotExpressibleError, match="hidden size"):
        llava_7b().built(Sizes(tuple(range(32)), heads=26))


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
def test_a_llama_with_biases_has_no_twin(changes):
    assert twin_name(llava_7b_config(**changes)) is None
    backbone = with_text("llama", **changes)
    assert head_choices(backbone) == {2: False, 1: False}


@pytest.mark.parametrize(("family", "twin"), [("llava_llama", "mistral"), ("llava_mistral", None), ("qwen3_vl", None)])
def test_which_backbones_have_a_twin(family, twin):
    assert twin_name(FAMILIES[family].config()) == twin


def test_the_twin_is_numerically_identical():
    model = FAMILIES["llava_llama_gqa"].build()
    backbone = Backbone.of(model)
    twin = type(model)(edited(model.config, {}, as_twin)).eval()
    assert type(twin.get_decoder()).__name__ == "MistralModel"
    twin.load_state_dict(model.state_dict(), strict=True)
    for inputs in (
        FAMILIES["llava_llama_gqa"].inputs(model.config),
        FAMILIES["llava_llama"].text_inputs(model.config),
    ):
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, twin(**inputs).logits)
    assert backbone.num_layers == twin.config.text_config.num_hidden_layers


def test_layers_that_are_all_listed_are_renumbered():
    config = FAMILIES["llama4"].config()
    changes = config.text_config.to_dict() | {"interleave_moe_layer_step": 1, "moe_layers": None}
    config.text_config = type(config.text_config)(**changes)
    assert config.text_config.moe_layers == [0, 1, 2, 3]
    backbone = Backbone(model_class_of(config), config)
    sizes = Sizes((0, 2, 3))
    assert backbone.config_for(sizes).text_config.moe_layers == [0, 1, 2]
    assert len(backbone.built(sizes).get_submodule(backbone.layers_prefix)) == 3


@pytest.mark.parametrize("family", ["llava_llama", "mllama", "qwen3_5"])
def test_tensors_are_renamed_with_their_layers(family):
    backbone = backbone_of(family)
    kept = [0, 2, 3]
    names = {name: backbone.renamed(name, kept) for name in backbone.shapes}
    for name, new in names.items():
        layer = backbone.layer_of(name)
        if layer is None:
            assert new == name
        elif layer in kept:
            assert backbone.layer_of(new) == kept.index(layer)
            assert new.rpartition(f".{kept.index(layer)}.")[2] == name.rpartition(f".{layer}.")[2]
        else:
            assert new is None
    remaining = [new for new in names.values() if new]
    assert len(remaining) == len(set(remaining))


@pytest.mark.parametrize("name", ["Florence2Config", "T5Gemma2Config", "Pix2StructConfig"])
def test_encoder_decoders_are_refused(name):
    config = getattr(transformers, name)()
    reason = f"{config.model_type} has an encoder-decoder backbone; only decoder-only ones are pruned."
    with pytest.raises(UserInputError, match=reason):
        Backbone(model_class_of(config), config)


@pytest.mark.parametrize("name", ["LlamaConfig", "BertConfig", "CLIPConfig"])
def test_what_is_no_vision_language_model_is_refused(name):
    config = getattr(transformers, name)()
    reason = f"model type '{config.model_type}' is not a vision-language model: give one that AutoModelForImageText"
    with pytest.raises(UserInputError, match=reason):
        model_class_of(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_is_the_one_that_auto_model_builds(family):
    model = FAMILIES[family].build()
    assert model_class_of(model.config) is type(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_nothing_changes_nothing(family):
    config = FAMILIES[family].config()
    before = copy.deepcopy(config.to_dict())
    again = edited(config, {})
    assert config.to_dict() == before
    assert again is not config
    assert again.get_text_config(decoder=True).to_dict() == config.get_text_config(decoder=True).to_dict()


def test_edits_reach_the_text_part_only():
    config = FAMILIES["llava_gemma2"].config()
    assert text_path(config) == ("text_config",)
    after = edited(config, {"intermediate_size": 40}, lambda text: {**text, "hidden_activation": "relu"})
    assert (after.text_config.intermediate_size, after.text_config.hidden_activation) == (40, "relu")
    assert after.vision_config.to_dict() == config.vision_config.to_dict()


def test_a_rejected_config_says_why_in_one_line():
    with pytest.raises(ConfigRejectedError) as rejected:
        edited(FAMILIES["llava_llama"].config(), {"num_attention_heads": 7})
    assert str(rejected.value) == "The hidden size (64) is not a multiple of the number of attention heads (7)."
