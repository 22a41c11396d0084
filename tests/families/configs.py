"""Small configs: the parts of a vision-language model, and how they are put together."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from families.sizes import (
    BOS,
    EOS,
    HEADS,
    HIDDEN,
    IMAGE,
    KV_HEADS,
    LAYERS,
    MLP,
    PAD,
    PATCH,
    VIDEO,
    VISION_END,
    VISION_HEADS,
    VISION_HIDDEN,
    VISION_LAYERS,
    VISION_MLP,
    VISION_START,
    VOCAB,
)


def text_config(model_type: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **changes,
    }


def vision_config(model_type: str, image_size: int = 16, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": VISION_MLP,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": VISION_HEADS,
        "image_size": image_size,
        "patch_size": PATCH,
        **changes,
    }


def patch_vision_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return the vision config of the Qwen-VL kind: other key names, patches merged 2 x 2."""
    return {
        "model_type": model_type,
        "hidden_size": VISION_HIDDEN,
        "out_hidden_size": HIDDEN,
        "intermediate_size": VISION_MLP,
        "depth": VISION_LAYERS,
        "num_heads": VISION_HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        **changes,
    }


def rope_sections(*section: int, **changes: Any) -> dict[str, Any]:
    """Return rotary parameters for text and image positions; the sections add up to half of the rotated size."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **changes}


def build_config(model_type: str, text: dict[str, Any], vision: dict[str, Any], **changes: Any) -> PreTrainedConfig:
    # The image token is called an id or an index: a config maps one name to the other.
    return AutoConfig.for_model(
        model_type, text_config=text, vision_config=vision, **{"image_token_id": IMAGE, **changes}
    )


def build_qwen_config(
    model_type: str, text: dict[str, Any], vision: dict[str, Any], **changes: Any
) -> PreTrainedConfig:
    tokens = {"video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    return build_config(model_type, text, vision, **tokens, **changes)


def build_llava_config(text: dict[str, Any], **vision: Any) -> PreTrainedConfig:
    return build_config("llava", text, vision_config("clip_vision_model", **vision), image_seq_length=4)
