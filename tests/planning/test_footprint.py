"""What a model takes to run: every part against what the model itself makes, and all of it against a real prefill."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from backbone.llava_7b import PARAMETERS, llava_7b
from families import FAMILIES
from transformers import DynamicCache

from optimum_mllm_prune.backbone import Backbone, Sizes, model_class_of
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.planning import footprint as module
from optimum_mllm_prune.planning.footprint import Footprint, Load, footprint
from optimum_mllm_prune.planning.live_memory import FusedKernels, LiveMemory


SCRIPT = Path(__file__).with_name("prefill_memory.py")


@cache
def backbone_of(family):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config)


def load(batch=1, context=40, images=0, dtype=torch.float32):
    return Load(dtype, batch, context, images)


def reason_of(call):
    with pytest.raises(UserInputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_llava_7b_by_hand():
    found = footprint(llava_7b(), load(4, 4096, 1, torch.bfloat16))
    assert found.weights == 2 * PARAMETERS
    assert found.cache == 2 * 32 * 4 * 4096 * 4096 * 2
    # Residual stream, its normed copy, gate, its activation and up at once; the next is the MLP's output.
    mlp = 2 * 4 * 4096 * (2 * 4096 + 3 * 11008)
    assert mlp < found.activations < 1.5 * mlp
    assert found.total == found.weights + found.cache + found.activations


@pytest.mark.parametrize(
    "family", ["llava_llama_gqa", "llava_gemma2", "gemma3", "qwen3_5", "gemma4", "lfm2_vl", "llama4"]
)
def test_the_cache_is_what_a_real_pass_caches(family):
    model = FAMILIES[family].build()
    text = model.config.get_text_config(decoder=True)
    held = DynamicCache(config=text)
    with torch.no_grad():
        model.get_decoder()(inputs_embeds=torch.randn(2, 40, text.hidden_size), past_key_values=held)
    real = [value for layer in held.layers for value in tensors_in(vars(layer))]
    assert footprint(Backbone.of(model), load(2)).cache == sum(tensor.nbytes for tensor in real)


def tensors_in(value):
    if isinstance(value, dict):
        return [
            tensor for key, inner in value.items() if key != "_sliding_window_tensor" for tensor in tensors_in(inner)
        ]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_one(family):
    few, many = (footprint(backbone_of(family), load(2, context)) for context in (16, 64))
    assert few.weights == many.weights == 4 * backbone_of(family).parameters
    assert 0 < few.cache <= many.cache
    assert 0 < few.activations < many.activations


def test_a_sliding_window_is_counted_by_its_length():
    short, long = (footprint(backbone_of("gemma3"), load(context=context)).cache for context in (40, 140))
    full = [kind for kind in backbone_of("gemma3").layer_kinds if kind == "full_attention"]
    # Only full attention grows: 4 key-value heads of 16, keys and values.
    assert long - short == len(full) * 100 * 2 * 4 * 16 * 4


def test_cache_and_weights_go_by_their_number_format():
    wide, narrow = (footprint(backbone_of("llava_llama"), load(dtype=d)) for d in (torch.float32, torch.bfloat16))
    assert (wide.weights, wide.cache) == (2 * narrow.weights, 2 * narrow.cache)
    assert wide.activations > narrow.activations


def test_what_is_removed_is_not_cached():
    backbone = backbone_of("llava_llama_gqa")
    whole = footprint(backbone, load())
    fewer_layers = footprint(backbone, load(), Sizes((0, 2)))
    fewer_heads = footprint(backbone, load(), Sizes((0, 1, 2, 3), heads=2))
    fewer_channels = footprint(backbone, load(), Sizes((0, 1, 2, 3), channels=8))
    assert fewer_layers.cache == fewer_heads.cache == whole.cache // 2
    assert fewer_channels.cache == whole.cache
    assert fewer_channels.activations < whole.activations
    assert fewer_layers.activations == whole.activations


def test_the_backbone_is_left_as_it_was():
    backbone = Backbone(backbone_of("llava_llama").model_class, FAMILIES["llava_llama"].config())
    kinds = {parameter.dtype for parameter in backbone._skeleton.parameters()}
    footprint(backbone, load(dtype=torch.float16))
    assert {parameter.dtype for parameter in backbone._skeleton.parameters()} == kinds


@pytest.mark.parametrize("family", ["llava_llama", "llava_gemma", "paligemma", "internvl", "vipllava"])
def test_the_vision_tower_takes_no_more_than_estimated(family):
    model = backbone_of(family).built(Sizes(tuple(range(backbone_of(family).num_layers)))).eval()
    size = model.config.vision_config.image_size
    high, wide = size if isinstance(size, (list, tuple)) else (size, size)
    pixels = torch.empty(6, 3, high, wide, device="meta")
    with torch.no_grad(), LiveMemory(model) as memory, FusedKernels():
        model.get_image_features(pixel_values=pixels)
    estimate = module._vision(model, load(batch=2, images=3))
    assert memory.peak <= estimate < 6 * memory.peak


def test_images_of_any_resolution_take_what_the_context_has_room_for():
    model = backbone_of("qwen2_vl")
    config = model.config
    assert module._patches(config, load(2, 40, 1)) == module._patches(config, load(2, 40, 9)) == 2 * 40 * 4
    assert module._patches(config, load(2, 40, 0)) == 0
    assert module._patches(llava_7b().config, load(2, 40, 3)) == 2 * 3 * (24 * 24 + 1)


def test_rows_that_are_padded_need_a_mask():
    assert module._mask(load(1, 100)) == 0
    assert module._mask(load(3, 100, dtype=torch.bfloat16)) == 3 * 100 * 100 * (1 + 2)


def test_images_that_are_cached_outside_the_context_are_refused():
    assert reason_of(lambda: footprint(backbone_of("mllama"), load(images=1))) == (
        "this model caches its images in cross-attention layers, how long its config does not say: "
        "count without images, or give a ratio."
    )
    assert footprint(backbone_of("mllama"), load()).cache > 0


def test_a_decoder_that_needs_its_weights_is_refused(monkeypatch):
    def needing(model, load):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors\nand more")

    monkeypatch.setattr(module, "_prefill", needing)
    assert reason_of(lambda: footprint(backbone_of("llava_llama"), load())) == (
        "the decoder of this model does not run without its weights (Tensor.item() cannot be called on meta tensors): "
        "give a ratio."
    )


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0."),
        ({"context": 1.5}, "context must be a whole number of at least 1, got 1.5."),
        ({"context": True}, "context must be a whole number of at least 1, got True."),
        ({"images": -1}, "images must be a whole number of at least 0, got -1."),
        ({"dtype": torch.int8}, "dtype must be one of floating point, such as bfloat16, got torch.int8."),
    ],
)
def test_loads_that_are_none(wish, reason):
    assert reason_of(lambda: load(**wish)) == reason


def test_memory_is_counted_once_and_forgotten_with_its_last_tensor():
    weights = torch.nn.Linear(10, 10, device="meta")
    with LiveMemory(weights) as memory:
        assert weights.weight.t().shape == (10, 10)
        assert memory.live == 0
        first = torch.empty(100, device="meta")
        view = first.view(10, 10)[2:]
        second = first * 2
        assert (memory.live, memory.peak) == (800, 800)
        del first, second
        assert (memory.live, memory.peak) == (400, 800)
        del view
        assert (memory.live, memory.peak) == (0, 800)
        # What splits one storage counts it once.
        halves = torch.empty(50, device="meta").chunk(2)
        assert memory.live == 200
        del halves
    assert memory.live == 0


def test_fused_attention_makes_no_scores():
    query, value = torch.empty(1, 2, 50, 8, device="meta"), torch.empty(1, 2, 50, 4, device="meta")
    with LiveMemory(torch.nn.Module()) as memory, FusedKernels():
        made = torch.nn.functional.scaled_dot_product_attention(query, query, value)
    assert made.shape == (1, 2, 50, 4)
    assert memory.peak == made.nbytes == 2 * 50 * 4 * 4


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="resident memory is read as Linux tells it")
@pytest.mark.slow
@pytest.mark.parametrize("row", [("llama", 2, 1024, 1), ("gemma2", 2, 512, 0)], ids=lambda row: row[0])
def test_a_real_prefill_takes_what_was_estimated(row):
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), *map(str, row)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.92 < found["estimate"] / found["measured"] < 1.1
    # Cache and activations alone, for most of it is weights.
    beside = (found["estimate"] - found["weights"]) / (found["measured"] - found["weights"])
    assert 0.8 < beside < 1.2


def test_a_total_is_the_sum():
    assert Footprint(1, 20, 300).total == 321
