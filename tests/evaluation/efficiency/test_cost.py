"""Against counts by hand, and against caches that are looked at."""

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES

from optimum_mllm_prune.evaluation.efficiency.cache_size import CacheSize, cache_size
from optimum_mllm_prune.evaluation.efficiency.cost import Cost, cost_of, decode_weight_bytes, prefill_flops
from optimum_mllm_prune.evaluation.efficiency.decoding import generate
from optimum_mllm_prune.evaluation.efficiency.inputs import prompt_inputs


def product(rows, inner, columns):
    return 2 * rows * inner * columns


def block(tokens, hidden, heads, kv_heads, head_dim, mlp, mlp_maps):
    projections = product(tokens, hidden, 2 * (heads + kv_heads) * head_dim)
    scores = 2 * heads * product(tokens, head_dim, tokens)
    return projections + scores + mlp_maps * product(tokens, hidden, mlp)


def flops_by_hand(model, text_tokens):
    """Matrix products of a LLaVA: patches, tower, projector, decoder, and the head at the last token alone."""
    text, vision = model.config.text_config, model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    seen = vision.hidden_size
    total = product(patches, 3 * vision.patch_size**2, seen)
    heads = vision.num_attention_heads
    total += vision.num_hidden_layers * block(
        patches + 1, seen, heads, heads, seen // heads, vision.intermediate_size, 2
    )
    total += product(patches, seen, text.hidden_size) + product(patches, text.hidden_size, text.hidden_size)
    shape = (text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim)
    total += text.num_hidden_layers * block(text_tokens + patches, *shape, text.intermediate_size, 3)
    return total + product(1, text.hidden_size, text.vocab_size)


@pytest.mark.parametrize("tokens", [40, 97])
def test_flops_by_hand(tokens):
    model = tiny_llava.model()
    inputs = prompt_inputs(model, tiny_llava.processor(), tokens, 1)
    text_tokens = inputs["input_ids"].shape[1] - 16
    # The pooled output of the class token is no part of what a LLaVA uses, nor is it a product.
    assert prefill_flops(model, inputs) == flops_by_hand(model, text_tokens)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_do_not_depend_on_the_kernel(attention):
    model = tiny_llava.model()
    model.set_attn_implementation(attention)
    inputs = prompt_inputs(model, tiny_llava.processor(), 40, 1)
    assert prefill_flops(model, inputs) == flops_by_hand(model, inputs["input_ids"].shape[1] - 16)


def test_flops_grow_with_the_rows():
    model = tiny_llava.model()
    one, three = (prefill_flops(model, prompt_inputs(model, tiny_llava.processor(), 40, rows)) for rows in (1, 3))
    assert three == 3 * one


def test_parameters_ask_for_gradients_as_before():
    model = tiny_llava.model()
    model.lm_head.requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    prefill_flops(model, prompt_inputs(model, None, 8, 1))
    assert [p.requires_grad for p in model.parameters()] == asked


def test_the_cache_by_hand():
    model = tiny_llava.model()
    found = cache_size(model, prompt_inputs(model, None, 12, 1))
    assert found == CacheSize(2 * tiny_llava.LAYERS * tiny_llava.KV_HEADS * 20 * 4, {}, 0)


# Full attention, sliding windows of 8 in some layers, states of linear attention, keys of an image, convolutions.
@pytest.mark.parametrize("name", ["llava_qwen3", "llava_gemma2", "gemma3", "qwen3_5", "mllama", "lfm2_vl"])
def test_the_cache_is_foretold(name):
    family = FAMILIES[name]
    model = family.build()
    inputs = family.inputs(model.config)
    size = cache_size(model, inputs)
    made = generate(model, inputs, 21, return_dict_in_generate=True)
    held = 0
    for layer in made.past_key_values.layers:
        states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
        pair = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        held += sum(tensor.nbytes for tensor in states + pair if tensor is not None)
    assert size.bytes_at(inputs["input_ids"].shape[1] + 20) == held


def test_which_layers_keep_what():
    sizes = {}
    for name in ("llava_gemma2", "qwen3_5", "mllama"):
        model = FAMILIES[name].build()
        sizes[name] = cache_size(model, FAMILIES[name].inputs(model.config))
    assert list(sizes["llava_gemma2"].windows) == [7] and sizes["llava_gemma2"].constant == 0
    assert not sizes["qwen3_5"].windows and sizes["qwen3_5"].constant > 0
    assert not sizes["mllama"].windows and sizes["mllama"].constant > 0


def test_a_window_stops_growing():
    size = CacheSize(per_token=2, windows={5: 10}, constant=100)
    assert [size.bytes_at(tokens) for tokens in (0, 4, 5, 6)] == [100, 148, 160, 162]


def test_a_cache_of_another_kind_is_not_guessed(monkeypatch):
    model = tiny_llava.model()

    class Made:
        past_key_values = ((torch.zeros(1, 2, 3, 4),) * 2,)

    monkeypatch.setattr(model, "generate", lambda **_: Made())
    assert cache_size(model, {"input_ids": torch.zeros(1, 3, dtype=torch.long)}) is None


@pytest.mark.parametrize("processor", [None, tiny_llava.processor()])
def test_weights_that_decoding_reads(processor):
    model = tiny_llava.model()
    language = sum(p.nbytes for p in model.get_decoder().parameters()) + model.lm_head.weight.nbytes
    table = model.get_input_embeddings().weight
    found = decode_weight_bytes(model, prompt_inputs(model, processor, 40, 1))
    assert found == language - table.nbytes + table[0].nbytes


def test_a_tied_table_is_read_as_a_head():
    model = FAMILIES["llava_llama_tied"].build()
    found = decode_weight_bytes(model, FAMILIES["llava_llama_tied"].inputs(model.config))
    assert found == sum(p.nbytes for p in model.get_decoder().parameters())


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llama4"])
def test_experts_in_one_tensor_are_not_guessed(name):
    model = FAMILIES[name].build()
    cost = cost_of(model, FAMILIES[name].inputs(model.config), 5)
    assert cost.decode_weight_bytes is None
    assert cost.decode_bytes(1, 4) is None
    assert cost.prefill_flops > 0 and cost.cache.per_token > 0


def test_no_hook_is_left():
    model = tiny_llava.model()
    decode_weight_bytes(model, prompt_inputs(model, None, 8, 1))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bytes_of_a_step_by_hand():
    cost = Cost(10, 10, 1, decode_weight_bytes=1000, cache=CacheSize(3, {}, 5))
    # The four steps that make tokens 2 to 5 read 11, 12, 13 and 14 tokens.
    assert cost.decode_bytes(batch_size=2, new_tokens=5) == 1000 + 2 * (3 * 12.5 + 5)
    assert Cost(10, 10, 1, 1000, None).decode_bytes(2, 5) is None
