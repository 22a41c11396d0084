"""Where units lie inside fused projections."""

from contextlib import contextmanager

import pytest
import torch
from families import FAMILIES

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError, Segment, with_layouts


QKV = "self_attn.qkv_proj"
GATE_UP = "mlp.gate_up_proj"


def segments(group, role):
    """The segments of one tensor, which are the same in every layer."""
    found = {axis.segments for site in group.sites for axis in site.writers if role in axis.tensor}
    assert len(found) == 1
    return found.pop()


@contextmanager
def rows_reordered(model, role, order):
    """Every projection called `role` gives its output channels in another order, as if its weights lay differently."""
    order = torch.tensor(order)
    modules = [module for name, module in model.named_modules() if name.endswith(role)]
    handles = [module.register_forward_hook(lambda _, __, output: output[..., order]) for module in modules]
    assert handles
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", ["llava_phi3", "internvl_phi3"])
def test_queries_keys_and_values_one_after_the_other(family):
    model = FAMILIES[family].build()
    heads = with_layouts(Backbone.of(model).heads, model)
    assert segments(heads, QKV) == (Segment(0, 16), Segment(64, 8), Segment(96, 8))


@pytest.mark.parametrize("padding", [0.0, 0.1], ids=["zeros", "alike"])
@pytest.mark.parametrize("kind", ["heads", "channels"])
def test_rows_that_pad_the_vocabulary_are_not_looked_at(kind, padding):
    model = FAMILIES["llava_phi3"].build()
    with torch.no_grad():
        model.get_input_embeddings().weight[-30:] = padding
    for site in with_layouts(getattr(Backbone.of(model), kind), model).sites:
        assert all(axis.segments is not None for axis in site.axes)


def test_embeddings_of_zeros_alone_are_refused():
    model = FAMILIES["llava_phi3"].build()
    with torch.no_grad():
        model.get_input_embeddings().weight[3:] = 0
    with pytest.raises(NotExpressibleError, match="fewer than four of its token embeddings are not zero"):
        with_layouts(Backbone.of(model).heads, model)


@pytest.mark.parametrize("family", ["llava_phi3", "glm4v", "glm_ocr"])
def test_gates_before_ups(family):
    model = FAMILIES[family].build()
    channels = with_layouts(Backbone.of(model).channels, model)
    assert segments(channels, GATE_UP) == (Segment(0, 1), Segment(96, 1))


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_each_query_head_beside_its_gate(family):
    model = FAMILIES[family].build()
    groups = with_layouts(Backbone.of(model).heads, model)
    # Two query heads in a group, each with 32 channels and 32 gates.
    assert segments(groups, "q_proj") == (Segment(0, 128),)
    assert segments(groups, "k_proj") == (Segment(0, 32),)
    queries = with_layouts(Backbone.of(model, "query").heads, model)
    assert segments(queries, "q_proj") == (Segment(0, 64),)


def test_query_heads_of_a_fused_projection():
    model = FAMILIES["llava_phi3"].build()
    queries = with_layouts(Backbone.of(model, "query").heads, model)
    assert segments(queries, QKV) == (Segment(0, 8),)


def test_groups_one_after_the_other_each_with_its_queries_key_and_value():
    model = FAMILIES["llava_phi3"].build()
    # The model reads q 0-63, k 64-95, v 96-127; group g writes 32 rows: 16 of q, 8 of k, 8 of v.
    queries = [32 * g + i for g in range(4) for i in range(16)]
    keys, values = ([32 * g + start + i for g in range(4) for i in range(8)] for start in (16, 24))
    with rows_reordered(model, QKV, queries + keys + values):
        heads = with_layouts(Backbone.of(model).heads, model)
    assert segments(heads, QKV) == (Segment(0, 32),)


def test_gates_and_ups_by_turns():
    model = FAMILIES["llava_phi3"].build()
    with rows_reordered(model, GATE_UP, [*range(0, 192, 2), *range(1, 192, 2)]):
        channels = with_layouts(Backbone.of(model).channels, model)
    assert segments(channels, GATE_UP) == (Segment(0, 2),)


@pytest.mark.parametrize(("role", "kind", "rows"), [(QKV, "heads", 128), (GATE_UP, "channels", 192)])
def test_an_unknown_layout_is_refused(role, kind, rows):
    model = FAMILIES["llava_phi3"].build()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()
    reason = f"the layout of the fused projection .*{role}.* is not one of the known ones"
    with rows_reordered(model, role, order), pytest.raises(NotExpressibleError, match=reason):
        with_layouts(getattr(Backbone.of(model), kind), model)


@pytest.mark.parametrize("family", ["llava_phi3", "qwen3_5"])
def test_looking_leaves_no_trace(family):
    model = FAMILIES[family].build()
    inputs = FAMILIES[family].inputs(model.config)
    frozen = [name for i, (name, p) in enumerate(model.named_parameters()) if i % 2]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    with torch.no_grad():
        before = model(**inputs).logits
        for kind in ("heads", "channels"):
            with_layouts(getattr(Backbone.of(model), kind), model)
        assert torch.equal(model(**inputs).logits, before)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == frozen
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.get_decoder().modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_becomes_known_and_lies_within_its_axis(family):
    model = FAMILIES[family].build()
    for group in Backbone.of(model).groups()[0]:
        for site in with_layouts(group, model).sites:
            for axis in site.axes:
                assert sum(segment.block * axis.units for segment in axis.known_segments) == axis.owned
                assert (
                    len(axis.indices(range(axis.units)))
                    == axis.size
                    == model.get_parameter(axis.tensor).shape[axis.dim]
                )
