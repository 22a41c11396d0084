"""Families off the common path: fused MLPs, keys of their own, convolutions between attention layers, experts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from families.configs import (
    build_config,
    build_llava_config,
    build_qwen_config,
    patch_vision_config,
    rope_sections,
    text_config,
    vision_config,
)
from families.family import Family
from families.inputs import (
    any_resolution,
    flat_patches,
    native_resolution,
    one_image_each,
    padded_patches,
    placed_patches,
)
from families.sizes import HIDDEN, LAYERS, MLP, VIDEO, VISION_END, VISION_HIDDEN, VISION_START


def _fused_families() -> Iterator[Family]:
    for name, head_size in (("glm4v", {}), ("glm_ocr", {"head_dim": 16})):
        sections = rope_sections(4, 2, 2) if head_size else rope_sections(2, 1, 1)
        yield Family(
            name,
            partial(
                build_qwen_config,
                name,
                text_config(f"{name}_text", rope_parameters=sections, **head_size),
                patch_vision_config(f"{name}_vision", image_size=32, depth=LAYERS),
            ),
            flat_patches,
        )


def _keyed_families() -> Iterator[Family]:
    # OPT, the backbone of BLIP-2, calls the width of its MLP ffn_dim.
    opt = text_config("opt", ffn_dim=2 * MLP, word_embed_proj_dim=HIDDEN, tie_word_embeddings=False)
    del opt["intermediate_size"]
    yield Family("llava_opt", partial(build_llava_config, opt), partial(one_image_each, tokens=4, size=16))
    # Layers 0, 1, 3, 4, 5 and 6 take vision features, by numbers that stand beside the text config.
    yield Family(
        "granite4_vision",
        partial(
            build_config,
            "granite4_vision",
            text_config("granite4_vision_text", num_hidden_layers=8),
            vision_config("siglip_vision_model", hidden_size=64, vision_use_head=False),
            image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
            downsample_rate="1/2",
            vision_feature_select_strategy="full",
            deepstack_layer_map=[[1, 0], [2, 3]],
            spatial_target_layers=[6, 5, 1, 4],
            qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 80},
        ),
        partial(any_resolution, tile_tokens=1),
    )
    # Every third layer has larger heads, said layer by layer; from ten layers on those numbers are padded with zeros.
    patches = {"num_key_value_heads": 4, "head_dim": 16, "pooling_kernel_size": 2, "position_embedding_size": 16}
    yield Family(
        "gemma4",
        partial(
            build_config,
            "gemma4",
            text_config(
                "gemma4_text",
                num_hidden_layers=12,
                layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 4,
                sliding_window=8,
                head_dim=16,
                global_head_dim=32,
                hidden_size_per_layer_input=0,
            ),
            vision_config("gemma4_vision", **patches),
            audio_config=None,
            video_token_id=VIDEO,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
        ),
        placed_patches,
    )


def _hybrid_families() -> Iterator[Family]:
    types = ["conv", "conv", "full_attention", "conv", "full_attention"]
    yield Family(
        "lfm2_vl",
        partial(
            build_config,
            "lfm2_vl",
            text_config("lfm2", num_hidden_layers=5, layer_types=types, block_auto_adjust_ff_dim=False),
            vision_config("siglip2_vision_model", vision_use_head=False, num_patches=16),
            projector_hidden_size=72,
        ),
        padded_patches,
    )
    yield Family(
        "lighton_ocr",
        partial(build_config, "lighton_ocr", text_config("qwen3", head_dim=16), vision_config("pixtral", 32)),
        native_resolution,
    )


def _expert_families() -> Iterator[Family]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    yield Family(
        "qwen3_vl_moe",
        partial(
            build_qwen_config,
            "qwen3_vl_moe",
            text_config(
                "qwen3_vl_moe_text",
                head_dim=16,
                rope_parameters=rope_sections(4, 2, 2),
                mlp_only_layers=[1],
                **experts,
            ),
            patch_vision_config("qwen3_vl_moe_vision", num_position_embeddings=16, deepstack_visual_indexes=[0]),
        ),
        flat_patches,
    )
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "full_attention_interval": 2,
        "shared_expert_intermediate_size": 56,
    }
    yield Family(
        "qwen3_5_moe",
        partial(
            build_qwen_config,
            "qwen3_5_moe",
            text_config(
                "qwen3_5_moe_text",
                head_dim=32,
                rope_parameters=rope_sections(2, 1, 1, partial_rotary_factor=0.25),
                **linear,
                **experts,
            ),
            patch_vision_config("qwen3_5_moe_vision", num_position_embeddings=16),
        ),
        flat_patches,
    )
    yield Family(
        "llama4",
        partial(
            build_config,
            "llama4",
            text_config(
                "llama4_text",
                head_dim=16,
                intermediate_size=40,
                intermediate_size_mlp=96,
                num_local_experts=4,
                interleave_moe_layer_step=2,
                no_rope_layer_interval=2,
                attention_chunk_size=8,
                attn_temperature_tuning=False,
            ),
            vision_config(
                "llama4_vision_model",
                32,
                intermediate_size=4 * VISION_HIDDEN,
                projector_input_dim=56,
                projector_output_dim=56,
                vision_output_dim=56,
            ),
        ),
        partial(one_image_each, tokens=4, size=32),
    )
    yield Family(
        "aria",
        partial(
            build_config,
            "aria",
            text_config("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=2, intermediate_size=40),
            vision_config("idefics3_vision", 32),
            projector_patch_to_query_dict={"16": 4},
        ),
        partial(one_image_each, tokens=4, size=32),
    )


def families() -> Iterator[Family]:
    """Yield every family off the common path."""
    yield from _fused_families()
    yield from _keyed_families()
    yield from _hybrid_families()
    yield from _expert_families()
