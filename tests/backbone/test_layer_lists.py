import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.backbone.layer_lists import layer_changes, named_layers, outer_changes


def changed(key, value, num_layers, kept):
    return layer_changes({key: value}, num_layers, kept).get(key, value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layer_types", ["a", "b", "c", "d"], ["a", "c"]),
        ("no_rope_layers", [1, 0, 1, 1], [1, 1]),
        ("intermediate_sizes", (96, 80, 64, 48), [96, 64]),
        ("sliding_window_by_layer", [None, 8, 16, None], [None, 16]),
        # Two layers more, for the prediction of further tokens.
        ("layer_types", ["a", "b", "c", "d", "extra", "extra"], ["a", "c", "extra", "extra"]),
        ("cross_attention_layers", [0, 2], [0, 1]),
        ("cross_attention_layers", [1, 2], [1]),
        ("cross_attention_layers", [1, 3], []),
        ("moe_layers", [0, 1, 2, 3], [0, 1]),
        ("first_k_dense_replace", 0, 0),
        ("first_k_dense_replace", 1, 1),
        ("first_k_dense_replace", 2, 1),
        ("max_window_layers", 4, 2),
        ("num_kv_shared_layers", 1, 0),
        ("num_kv_shared_layers", 2, 1),
        ("per_layer_config", {"0": "a", "2": "c", "3": "d"}, {"0": "a", "1": "c"}),
        ("per_layer_config", {"00": "a", "02": "c", "03": "d"}, {"00": "a", "01": "c"}),
        ("per_layer_config", {"1": "b"}, {}),
        ("per_layer_config", {}, {}),
    ],
)
def test_what_goes_by_layer_goes_with_the_layers(key, value, expected):
    assert changed(key, value, 4, [0, 2]) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", [1, 2, 3, 4]),
        ("hidden_size", 4),
        ("num_attention_heads", 4),
        ("mrope_section", [2, 1, 1]),
        ("rope_parameters", {"mrope_section": [2, 1, 1, 0]}),
        ("skip_layers", [3, 1]),
        ("skip_layers", [2, 4]),
        ("skip_layers", [-1, 2]),
        ("skip_layers", [True, False]),
        ("skip_layers", []),
        ("suppressed", [1, 3]),
        ("architectures", ["SomeModel"]),
        ("layer_norm_eps", 1e-5),
        ("layer_types", None),
        ("name", "four"),
    ],
)
def test_everything_else_stays(key, value):
    assert layer_changes({key: value}, 4, [0, 2]) == {}


def test_only_changes_are_reported():
    text = {"layer_types": ["a", "a", "a"], "cross_attention_layers": [0], "first_k_dense_replace": 1, "vocab_size": 3}
    assert layer_changes(text, 3, [0, 2]) == {"layer_types": ["a", "a"]}


def test_of_two_layers_zero_and_one_are_flags():
    assert changed("no_rope_layers", [0, 1], 2, [1]) == [1]


@pytest.mark.parametrize(
    ("key", "value", "named", "expected"),
    [
        ("spatial_target_layers", [6, 2, 4], [6, 2, 4], [4, 1, 2]),
        ("deepstack_layer_map", [[1, 2], [-2, 6]], [2, 6], [[1, 1], [-2, 4]]),
        ("deepstack_layer_map", [(1, 2)], [2], [[1, 1]]),
        # Such a layer is not there.
        ("spatial_target_layers", [2, 12], [2], [1, 12]),
        ("spatial_target_layers", [12, 15], [], None),
        ("spatial_target_layers", None, [], None),
        ("vision_feature_layer", [2, 4], [], None),
        ("spatial_vision_layers", [2, 4], [], None),
        ("image_grid_pinpoints", [[2, 4]], [], None),
        ("layer_flags", [True, False], [], None),
        ("layer_names", ["a", "b"], [], None),
    ],
)
def test_keys_beside_the_text_config_that_name_layers(key, value, named, expected):
    assert named_layers(key, value, 8) == named
    assert outer_changes({key: value}, 8, [0, 2, 4, 5, 6]).get(key) == expected


depth_and_kept = st.integers(3, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1).map(sorted))
)


@given(depth_and_kept)
def test_every_entry_stays_with_its_layer(case):
    depth, kept = case
    names = [f"layer {i}" for i in range(depth)]
    assert changed("layer_types", names, depth, kept) == [names[i] for i in kept]


@given(depth_and_kept, st.data())
def test_every_index_still_points_at_its_layer(case, data):
    depth, kept = case
    indexes = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    after = changed("cross_attention_layers", indexes, depth, kept)
    assert [kept[i] for i in after] == [i for i in indexes if i in kept]


@given(depth_and_kept, st.data())
def test_counts_still_count_the_same_layers(case, data):
    depth, kept = case
    count = data.draw(st.integers(0, depth))
    assert changed("first_k_dense_replace", count, depth, kept) == len([i for i in kept if i < count])
    assert changed("num_kv_shared_layers", count, depth, kept) == len([i for i in kept if i >= depth - count])
