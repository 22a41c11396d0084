"""LLaVA-1.5-7B by its config alone: shapes, no weights."""

from functools import cache

from transformers import LlavaConfig

from optimum_mllm_prune.backbone import Backbone, model_class_of


PARAMETERS = 7_063_427_072
BACKBONE_PARAMETERS = 6_738_939_904


def llava_7b_config(**text):
    text = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "vocab_size": 32064, **text}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    }
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=32000)


@cache
def llava_7b():
    config = llava_7b_config()
    return Backbone(model_class_of(config), config)
