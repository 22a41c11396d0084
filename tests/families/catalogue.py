"""The families."""

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
    image_lists,
    native_resolution,
    one_image_each,
    prefix_only,
    tiles,
    with_token_types,
)
from families.sizes import HEADS, HIDDEN, LAYERS, MLP, PAD, VIDEO, VISION_END, VISION_HIDDEN, VISION_START, VOCAB


def _llava_families() -> Iterator[Family]:
    as_deep = {"num_hidden_layers": LAYERS, "intermediate_size": MLP}
    backbones = {
        "llama": (text_config("llama", num_key_value_heads=HEADS), {}),
        "llama_gqa": (text_config("llama"), as_deep),
        "llama_tied": (text_config("llama", tie_word_embeddings=True), {}),
        "llama_biased": (text_config("llama", attention_bias=True, mlp_bias=True), {}),
        "mistral": (text_config("mistral", head_dim=16, sliding_window=None), as_deep),
        "qwen2": (text_config("qwen2"), {}),
        "qwen3": (text_config("qwen3", head_dim=16), as_deep),
        "phi": (text_config("phi", num_key_value_heads=HEADS), {}),
        "phi3": (text_config("phi3"), as_deep),
        "gemma": (text_config("gemma", head_dim=16), {}),
        "gemma2": (text_config("gemma2", head_dim=16, query_pre_attn_scalar=16, sliding_window=8), as_deep),
    }
    for name, (text, vision) in backbones.items():
        yield Family(
            f"llava_{name}", partial(build_llava_config, text, **vision), partial(one_image_each, tokens=4, size=16)
        )


def _projector_families() -> Iterator[Family]:
    clip, siglip = vision_config("clip_vision_model"), vision_config("siglip_vision_model", vision_use_head=False)
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    yield Family(
        "llava_next",
        partial(
            build_config,
            "llava_next",
            text_config("mistral", sliding_window=None),
            clip,
            image_grid_pinpoints=pinpoints,
        ),
        any_resolution,
    )
    yield Family(
        "llava_onevision",
        partial(
            build_config,
            "llava_onevision",
            text_config("qwen2"),
            siglip,
            image_grid_pinpoints=pinpoints,
            video_token_id=VIDEO,
        ),
        any_resolution,
    )
    yield Family(
        "vipllava",
        partial(build_config, "vipllava", text_config("llama"), clip, vision_feature_layer=[-2, -1]),
        partial(one_image_each, tokens=4, size=16),
    )
    for backbone in ("qwen2", "phi3"):
        yield Family(
            "internvl" if backbone == "qwen2" else f"internvl_{backbone}",
            partial(
                build_config,
                "internvl",
                text_config(backbone),
                vision_config("internvl_vision", 32, num_hidden_layers=LAYERS),
                tie_word_embeddings=False,
            ),
            partial(one_image_each, tokens=4, size=32),
        )
    yield Family(
        "mistral3",
        partial(
            build_config,
            "mistral3",
            text_config("mistral", head_dim=16, sliding_window=None),
            vision_config("pixtral", 32),
            tie_word_embeddings=False,
        ),
        native_resolution,
    )
    for outer in ("aya_vision", "cohere2_vision"):
        yield Family(
            outer,
            partial(
                build_config,
                outer,
                text_config("cohere2", sliding_window=8),
                vision_config("siglip_vision_model", 32, vision_use_head=False),
                **({"alignment_intermediate_size": 160} if outer == "cohere2_vision" else {}),
            ),
            partial(one_image_each, tokens=4, size=32),
        )
    yield Family(
        "got_ocr2",
        partial(
            build_config,
            "got_ocr2",
            text_config("qwen2", num_key_value_heads=HEADS, tie_word_embeddings=True),
            vision_config(
                "got_ocr2_vision", 64, mlp_dim=80, output_channels=32, window_size=4, global_attn_indexes=[1]
            ),
        ),
        partial(one_image_each, tokens=4, size=64),
    )


def _idefics_families() -> Iterator[Family]:
    perceiver = {
        "hidden_size": HIDDEN,
        "resampler_n_latents": 5,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 8,
        "num_key_value_heads": 2,
    }
    yield Family(
        "idefics2",
        partial(
            build_config,
            "idefics2",
            text_config("mistral", sliding_window=None),
            vision_config("idefics2_vision", 32),
            perceiver_config=perceiver,
        ),
        partial(image_lists, tokens=5),
    )
    for name in ("idefics3", "smolvlm"):
        vision = vision_config(f"{name}vision_config", 32, num_hidden_layers=LAYERS, intermediate_size=MLP)
        yield Family(
            name,
            partial(build_config, name, text_config("llama"), vision, scale_factor=2, pad_token_id=PAD),
            partial(image_lists, tokens=4),
        )


def _gemma_families() -> Iterator[Family]:
    yield Family(
        "paligemma",
        partial(
            build_config,
            "paligemma",
            text_config("gemma", head_dim=16, num_key_value_heads=1),
            vision_config("siglip_vision_model", vision_use_head=False, num_hidden_layers=LAYERS),
            projection_dim=HIDDEN,
            hidden_size=HIDDEN,
            vocab_size=VOCAB,
        ),
        partial(prefix_only, tokens=4, size=16),
        # Without token types, text is masked in both directions; a cached token cannot see what came after it.
        cached_text_generation_differs=True,
    )
    yield Family(
        "gemma3",
        partial(
            build_config,
            "gemma3",
            text_config(
                "gemma3_text",
                head_dim=16,
                num_hidden_layers=6,
                sliding_window_pattern=3,
                sliding_window=8,
                query_pre_attn_scalar=16,
            ),
            vision_config("siglip_vision_model", 32, vision_use_head=False),
            mm_tokens_per_image=4,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
        ),
        partial(with_token_types, tokens=4, size=32),
    )


def _qwen_families() -> Iterator[Family]:
    yield Family(
        "qwen2_vl",
        partial(
            build_qwen_config,
            "qwen2_vl",
            text_config("qwen2_vl_text", rope_parameters=rope_sections(2, 1, 1)),
            patch_vision_config(
                "qwen2_vl_vision", hidden_size=HIDDEN, embed_dim=VISION_HIDDEN, mlp_ratio=2, depth=LAYERS
            ),
        ),
        flat_patches,
    )
    yield Family(
        "qwen2_5_vl",
        partial(
            build_qwen_config,
            "qwen2_5_vl",
            text_config("qwen2_5_vl_text", rope_parameters=rope_sections(2, 1, 1)),
            patch_vision_config("qwen2_5_vl_vision", window_size=32, fullatt_block_indexes=[1]),
        ),
        flat_patches,
    )
    # DeepStack adds vision features after the first two text layers; enough layers remain to remove some.
    deepstack = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    yield Family(
        "qwen3_vl",
        partial(
            build_qwen_config,
            "qwen3_vl",
            text_config("qwen3_vl_text", head_dim=16, num_hidden_layers=5, rope_parameters=rope_sections(4, 2, 2)),
            patch_vision_config("qwen3_vl_vision", **deepstack),
        ),
        flat_patches,
    )
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "full_attention_interval": 3,
    }
    yield Family(
        "qwen3_5",
        partial(
            build_qwen_config,
            "qwen3_5",
            text_config(
                "qwen3_5_text",
                head_dim=32,
                num_hidden_layers=6,
                rope_parameters=rope_sections(2, 1, 1, partial_rotary_factor=0.25),
                **linear,
            ),
            patch_vision_config("qwen3_5_vision", num_position_embeddings=16),
        ),
        flat_patches,
    )


def _cross_attention_families() -> Iterator[Family]:
    vision = vision_config(
        "mllama_vision_model",
        num_global_layers=1,
        intermediate_layers_indices=[0, 1],
        vision_output_dim=3 * VISION_HIDDEN,
    )
    text = text_config("mllama_text_model", num_hidden_layers=6, cross_attention_layers=[1, 4])
    # The image token is the first id after the vocabulary: its embedding exists, its logit does not.
    yield Family("mllama", partial(build_config, "mllama", text, vision, image_token_id=VOCAB), tiles)


def families() -> Iterator[Family]:
    """Yield every common family."""
    yield from _llava_families()
    yield from _projector_families()
    yield from _idefics_families()
    yield from _gemma_families()
    yield from _qwen_families()
    yield from _cross_attention_families()
