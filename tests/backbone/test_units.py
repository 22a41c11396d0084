import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.backbone.units import Axis, Group, Segment, Site, layout_candidates


@st.composite
def axes(draw):
    """Segments one after the other, with gaps that no unit owns, along either dimension of a matrix or a vector."""
    units = draw(st.integers(1, 5))
    position, segments = 0, []
    for _ in range(draw(st.integers(1, 3))):
        position += draw(st.integers(0, 2))
        block = draw(st.integers(1, 3))
        segments.append(Segment(position, block))
        position += units * block
    size = position + draw(st.integers(0, 2))
    shape = draw(st.sampled_from([(size,), (size, 3), (3, size), (2, size, 2)]))
    dim = shape.index(size) if len(shape) == 1 else {(size, 3): 0}.get(shape, 1)
    owned = sum(units * segment.block for segment in segments)
    return Axis("some.weight", dim, size, units, owned, tuple(segments)), shape


def positions(axis, unit):
    return [s.offset + unit * s.block + i for s in axis.segments for i in range(s.block)]


@given(axes(), st.data())
def test_indices_are_those_of_the_units_and_of_no_unit(drawn, data):
    axis, _ = drawn
    kept = sorted(data.draw(st.sets(st.integers(0, axis.units - 1))))
    everyones = {p for unit in range(axis.units) for p in positions(axis, unit)}
    expected = sorted(
        (set(range(axis.size)) - everyones) | {position for unit in kept for position in positions(axis, unit)}
    )
    indices = axis.indices(kept)
    assert indices.dtype == torch.int64
    assert indices.tolist() == expected
    assert len(expected) == axis.size_with(len(kept))


@given(axes(), st.integers(0, 2**31 - 1))
def test_sums_are_over_all_that_a_unit_owns(drawn, seed):
    axis, shape = drawn
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [values.index_select(axis.dim, torch.tensor(positions(axis, u))).sum() for u in range(axis.units)]
    sums = axis.sums(values)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, torch.stack(expected).float())


def test_sums_of_half_precision_are_taken_in_fp32():
    values = torch.full((2, 4096), 1.001, dtype=torch.bfloat16)
    axis = Axis("some.weight", 0, 2, 2, 2, (Segment(0, 1),))
    assert axis.sums(values).tolist() == [float(values[0, 0]) * 4096] * 2


def test_an_unknown_layout_is_an_error():
    axis = Axis("some.qkv.weight", 0, 8, 2, 8)
    for ask in (lambda: axis.indices([0]), lambda: axis.sums(torch.zeros(8, 2))):
        with pytest.raises(ValueError, match=r"the layout of some\.qkv\.weight is not known"):
            ask()


def test_fused_layouts_most_usual_first():
    qkv = Axis("qkv", 0, 128, 4, 128)
    assert layout_candidates(qkv, (64, 32, 32)) == [
        (Segment(0, 16), Segment(64, 8), Segment(96, 8)),
        (Segment(0, 16), Segment(64, 16)),
        (Segment(0, 32),),
    ]
    gate_up = Axis("gate_up", 0, 192, 96, 192)
    assert layout_candidates(gate_up, ()) == [(Segment(0, 1), Segment(96, 1)), (Segment(0, 2),)]
    single = Axis("up", 0, 96, 96, 96)
    assert layout_candidates(single, ()) == [(Segment(0, 1),)]


def test_query_heads_alone_lie_at_the_start_of_a_fused_projection():
    assert layout_candidates(Axis("qkv", 0, 128, 8, 64), (64,))[0] == (Segment(0, 8),)


def test_config_values_of_fewer_units():
    site = Site("attn", 0, (), Axis("attn.o.weight", 1, 64, 4, 64, (Segment(0, 16),)))
    group = Group(
        "heads", {"num_attention_heads": 8, "num_key_value_heads": 4}, 4, "group", (site,), fixed={"head_dim": 8}
    )
    assert group.values(3) == {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
    assert group.with_sites([]).sites == ()
    assert site.reader_module == "attn.o"
