"""What the hidden size drives: which axes, what moves with it, and what is told apart from it."""

from functools import cache

import pytest
from families import FAMILIES
from torch import nn

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError, Sizes, model_class_of
from optimum_mllm_prune.backbone import hidden as hidden_module


@cache
def backbone_of(family):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config)


def built(family, size):
    backbone = backbone_of(family)
    return backbone.built(Sizes(tuple(range(backbone.num_layers)), hidden=size))


def test_the_axes_of_a_llava():
    hidden = backbone_of("llava_llama_gqa").hidden
    found = {(axis.tensor, axis.dim) for axis in hidden.axes}
    home = "model.language_model"
    expected = {
        (f"{home}.embed_tokens.weight", 1),
        (f"{home}.norm.weight", 0),
        ("lm_head.weight", 1),
        ("model.multi_modal_projector.linear_2.weight", 0),
        ("model.multi_modal_projector.linear_2.bias", 0),
    }
    for layer in (f"{home}.layers.{i}" for i in range(4)):
        expected |= {(f"{layer}.{norm}.weight", 0) for norm in ("input_layernorm", "post_attention_layernorm")}
        expected |= {(f"{layer}.self_attn.{name}_proj.weight", 1) for name in "qkv"}
        expected |= {(f"{layer}.self_attn.o_proj.weight", 0), (f"{layer}.mlp.down_proj.weight", 0)}
        expected |= {(f"{layer}.mlp.{name}_proj.weight", 1) for name in ("gate", "up")}
    assert found == expected
    assert (hidden.size, hidden.fixed, hidden.mirrors) == (64, {"head_dim": 8}, ())
    assert hidden.norms == tuple(
        [f"{home}.layers.{i}.{norm}" for i in range(4) for norm in ("input_layernorm", "post_attention_layernorm")]
        + [f"{home}.norm"]
    )


@pytest.mark.parametrize(
    ("family", "writers", "reader"),
    [
        ("llava_llama", ["linear_1.weight", "linear_1.bias"], "linear_2.weight"),
        ("got_ocr2", ["conv_upsampler2.weight"], "multimodal_projector.weight"),
        ("aria", ["linear_in.weight"], "linear_out.weight"),
    ],
)
def test_the_inner_width_of_a_projector_is_another_group(family, writers, reader):
    (site,) = backbone_of(family).hidden.projector.sites
    names = [axis.tensor.removeprefix(site.prefix + ".") for axis in site.axes]
    assert names == [*writers, reader]
    assert (site.reader.dim, site.layer) == (1, None)
    assert not {(a.tensor, a.dim) for a in site.axes} & {(a.tensor, a.dim) for a in backbone_of(family).hidden.axes}


@pytest.mark.parametrize("family", ["cohere2_vision", "idefics3", "qwen3_vl", "granite4_vision"])
def test_a_projector_of_its_own_width(family):
    assert backbone_of(family).hidden.projector is None


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "qwen3_vl_moe"])
def test_the_key_that_sizes_the_projector_moves_too(family):
    hidden = backbone_of(family).hidden
    assert hidden.mirrors == (("vision_config", "out_hidden_size"),)
    config = built(family, 32).config
    assert (config.vision_config.out_hidden_size, config.text_config.hidden_size) == (32, 32)
    assert config.vision_config.hidden_size == 48


def test_keys_that_are_as_large_by_chance_stay():
    assert backbone_of("granite4_vision").hidden.mirrors == ()
    config = built("granite4_vision", 40).config
    assert (config.vision_config.hidden_size, config.qformer_config.hidden_size) == (64, 64)
    assert built("got_ocr2", 40).config.vision_config.image_size == 64


@pytest.mark.parametrize("family", ["llava_qwen2", "llava_phi3", "internvl"])
def test_the_head_size_is_written_down(family):
    text = built(family, 40).config.text_config
    assert (text.hidden_size, text.head_dim, text.num_attention_heads) == (40, 8, 8)


@pytest.mark.parametrize("family", ["llava_phi", "cohere2_vision", "qwen3_5_moe", "llama4"])
def test_only_the_language_model_and_what_feeds_it_change(family):
    backbone = backbone_of(family)
    outside = {a.tensor for a in backbone.hidden.axes if not a.tensor.startswith(backbone.layers_prefix)}
    assert not any(".blocks." in name or "encoder" in name or "vision_tower" in name for name in outside)


def test_a_bare_parameter_gives_the_stream_along_its_last_side():
    axes = {(a.tensor, a.dim) for a in backbone_of("gemma3").hidden.axes if "projector" in a.tensor}
    assert axes == {("model.multi_modal_projector.mm_input_projection_weight", 1)}


@pytest.mark.parametrize(
    ("family", "norm"), [("gemma3", "model.language_model.norm"), ("llava_llama", None), ("llama4", None)]
)
def test_the_norm_before_the_head_where_token_embeddings_are_scaled(family, norm):
    assert backbone_of(family).hidden.final_norm == norm


class Router(nn.Module):
    """Scales by a number of the hidden size, as some routers do."""

    def __init__(self, size):
        super().__init__()
        self.root = size**-0.5


def test_another_number_that_goes_with_the_hidden_size(monkeypatch):
    whole = hidden_module.skeleton

    def skeleton(model_class, config):
        model = whole(model_class, config)
        model.model.language_model.layers[0].mlp.router = Router(config.text_config.hidden_size)
        return model

    monkeypatch.setattr(hidden_module, "skeleton", skeleton)
    config = FAMILIES["llava_llama"].config()
    with pytest.raises(NotExpressibleError) as refused:
        Backbone(model_class_of(config), config).hidden  # noqa: B018
    assert str(refused.value) == (
        "model.language_model.layers.0.mlp.router.root is a number that goes with hidden_size (0.125, then 0.176777), "
        "so what it scales would change"
    )


def test_what_a_llama_config_cannot_say():
    with pytest.raises(NotExpressibleError, match=r"hidden size \(44\) is not a multiple of the number of attention"):
        built("llava_llama", 44)
