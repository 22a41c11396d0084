"""What configs call the width of the MLP, and the reasons for what they cannot say."""

import pytest
from families.configs import build_llava_config, text_config
from transformers import AutoConfig, PreTrainedModel

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError, model_class_of
from optimum_mllm_prune.backbone.probe import Ground, probe_channels


LATENT = {
    "num_key_value_heads": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 40,
}


def backbone_of(config):
    return Backbone(model_class_of(config), config)


def reason(config, kind):
    with pytest.raises(NotExpressibleError) as refused:
        getattr(backbone_of(config), kind)
    return str(refused.value)


@pytest.mark.parametrize("model_type", ["blip-2", "instructblip"])
def test_the_mlp_width_is_found_under_its_own_name(model_type):
    channels = backbone_of(AutoConfig.for_model(model_type)).channels
    width = channels.keys["ffn_dim"]
    assert (channels.units, channels.values(width // 2)) == (width, {"ffn_dim": width // 2})
    assert all(site.reader.size == width for site in channels.sites)


def test_no_mlp_width_under_a_known_name():
    config = AutoConfig.for_model("qwen3_5_moe")
    assert reason(config, "channels") == (
        "its config has no MLP width under a known name (intermediate_size, ffn_dim)"
    )


def test_one_mlp_width_for_each_layer():
    text = AutoConfig.for_model("gemma3n_text")
    with pytest.raises(NotExpressibleError, match=r"^its config has no single intermediate_size for all layers$"):
        probe_channels(Ground(PreTrainedModel, text, {}, "layers"))


def test_value_heads_of_another_size():
    config = build_llava_config(text_config("deepseek_v3", **LATENT))
    assert reason(config, "heads") == "its value heads have another size than head_dim: 12 instead of 8"


def test_head_sizes_that_follow_from_the_number_of_heads():
    config = AutoConfig.for_model("blip-2")
    assert reason(config, "heads") == (
        "opt derives the head size as hidden_size / num_attention_heads, so heads cannot go alone"
    )
