"""Sizes and exact accounting, from a config alone."""

from functools import cache

import pytest
import torch
from backbone.llava_7b import BACKBONE_PARAMETERS, PARAMETERS, llava_7b, llava_7b_config
from families import FAMILIES, head_choices
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.backbone import Backbone, NotExpressibleError, model_class_of
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance import Scores
from optimum_mllm_prune.planning import account
from optimum_mllm_prune.planning.width import _Width, channel_multiple


RATIOS = [0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6]
ONE_POINT = 0.01


@cache
def backbone_of(family, head_unit="auto"):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config, head_unit)


def refused(backbone, **wish):
    with pytest.raises(UserInputError) as error:
        account(backbone, PruningConfig(**wish))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ratio", RATIOS)
def test_width_of_llava_7b_is_within_a_point(ratio):
    made = account(llava_7b(), PruningConfig(ratio=ratio, method="width"))
    assert made.ratio["requested"] == ratio
    assert abs(made.ratio["achieved"] - ratio) < ONE_POINT
    assert made.sizes.channels % 64 == 0
    # Heads and MLP lose the same share, as near as whole heads allow.
    assert abs(made.sizes.heads / 32 - made.sizes.channels / 11008) < 1 / 32
    assert made.parameters["before"] == PARAMETERS
    assert made.parameters["backbone_before"] == BACKBONE_PARAMETERS
    gone = 32 * 4096 * (4 * 128 * (32 - made.sizes.heads) + 3 * (11008 - made.sizes.channels))
    assert made.parameters["after"] == PARAMETERS - gone
    assert made.parameters["backbone_after"] == BACKBONE_PARAMETERS - gone
    assert made.ratio["achieved"] == round(gone / BACKBONE_PARAMETERS, 6)


@pytest.mark.parametrize(("ratio", "heads"), [(0.1, None), (0.2, None), (0.3, 16), (0.4, 16), (0.5, 16), (0.6, 16)])
def test_without_the_twin_the_mlp_gives_what_the_heads_cannot(ratio, heads):
    made = account(llava_7b(), PruningConfig(ratio=ratio, allow_twin=False))
    assert (made.sizes.heads, made.sizes.twin) == (heads, False)
    assert "model_type" not in made.config_changes
    assert abs(made.ratio["achieved"] - ratio) < ONE_POINT


def test_the_twin_is_named():
    made = account(llava_7b(), PruningConfig(ratio=0.3))
    assert made.sizes.twin
    assert made.config_changes == {
        "model_type": "mistral",
        "num_attention_heads": 22,
        "num_key_value_heads": 22,
        "intermediate_size": 7552,
    }
    assert "attention heads: 32 -> 22 in every layer, which its own config class rejects" in made.notes[0]
    assert "numerically identical twin 'mistral'" in made.notes[0]
    assert made.notes[1] == "MLP channels: 11008 -> 7552 in every layer, rounded to a multiple of 64"


def test_the_twin_is_not_used_where_it_is_not_needed():
    made = account(llava_7b(), PruningConfig(ratio=0.48, channel_multiple=1))
    assert (made.sizes.heads, made.sizes.twin) == (16, False)


@pytest.mark.parametrize("allow_twin", [True, False])
@settings(deadline=None)
@given(wanted=st.one_of(st.floats(0.1, 32), st.integers(1, 64).map(lambda halves: halves / 2)))
def test_the_nearest_number_of_heads_of_all_that_a_checkpoint_can_have(allow_twin, wanted):
    backbone, config = llava_7b(), PruningConfig(ratio=0.3, allow_twin=allow_twin)
    choices = {32: False} | {n: twin for n, twin in head_choices(backbone).items() if allow_twin or not twin}
    nearest = min(choices, key=lambda n: (round(abs(n - wanted), 6), choices[n], -n))
    found = _Width(backbone, config, (), None, None)._nearest(backbone.heads, wanted)
    assert found == (nearest, choices[nearest])


def test_few_models_are_built_to_find_it(monkeypatch):
    built, build = [], Backbone.built
    monkeypatch.setattr(Backbone, "built", lambda self, sizes: built.append(sizes) or build(self, sizes))
    made = account(Backbone(model_class_of(llava_7b_config()), llava_7b_config()), PruningConfig(ratio=0.3))
    assert made.sizes.heads == 22
    assert 0 < len(built) < 6


@pytest.mark.parametrize(("layers", "after"), [(5, 6_051_510_272), (10, 5_039_593_472)])
def test_layers_of_llava_7b_are_counted_exactly(layers, after):
    made = account(llava_7b(), PruningConfig(num_layers=layers))
    assert (made.parameters["before"], made.parameters["after"]) == (PARAMETERS, after)
    assert made.config_changes == {"num_hidden_layers": 32 - layers}
    assert made.sizes.kept_layers == tuple(range(32 - layers))
    assert made.notes == [f"layers: 32 -> {32 - layers}"]
    assert made.ratio["requested"] == made.ratio["achieved"]


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_nearest_number_of_layers_goes(ratio):
    made = account(llava_7b(), PruningConfig(ratio=ratio, method="layer"))
    one = 202_383_360 / BACKBONE_PARAMETERS
    assert abs(made.ratio["achieved"] - ratio) <= one / 2 + 1e-6


@pytest.mark.parametrize("method", ["layer", "width"])
@pytest.mark.parametrize("target", [5_000_000_000, 6_000_000_000])
def test_a_target_is_one_of_the_whole_model(target, method):
    made = account(llava_7b(), PruningConfig(target_params=target, method=method))
    assert abs(made.parameters["after"] - target) < (202_383_360 / 2 if method == "layer" else 40_000_000)


EXPRESSIBLE = {family for family in FAMILIES if family not in {"aria", "llama4", "qwen3_5_moe", "qwen3_vl_moe"}}


@pytest.mark.parametrize("family", sorted(EXPRESSIBLE))
@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_every_familys_width_is_within_a_point(family, ratio):
    made = account(backbone_of(family), PruningConfig(ratio=ratio))
    assert abs(made.ratio["achieved"] - ratio) < ONE_POINT


def test_a_block_outside_the_backbone_counts_for_a_target_alone():
    backbone = backbone_of("idefics2")
    outside = [site.prefix for site in backbone.channels.sites if site.layer is None]
    assert outside == ["model.connector.modality_projection"]
    made = account(backbone, PruningConfig(ratio=0.3))
    assert made.parameters["before"] - made.parameters["after"] > (
        made.parameters["backbone_before"] - made.parameters["backbone_after"]
    )
    again = account(backbone, PruningConfig(target_params=made.parameters["after"]))
    assert abs(again.parameters["after"] - made.parameters["after"]) < ONE_POINT * made.parameters["before"]


@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_gemma2"])
def test_query_heads_go_evenly_from_every_group(family):
    made = account(backbone_of(family, "query"), PruningConfig(ratio=0.4, head_unit="query"))
    assert made.sizes.heads == 4
    assert made.config_changes["num_attention_heads"] == 4
    assert "num_key_value_heads" not in made.config_changes
    assert "query heads: 8 -> 4 in every layer" in " ".join(made.notes)


def test_what_is_not_expressible_is_noted():
    made = account(backbone_of("qwen2_vl"), PruningConfig(ratio=0.2))
    assert made.sizes.heads is None
    assert made.notes[0].startswith("heads: qwen2_vl_text derives the head size")


@pytest.mark.parametrize("multiple", [1, 8, 32, 100])
def test_a_chosen_multiple(multiple):
    made = account(llava_7b(), PruningConfig(ratio=0.2, channel_multiple=multiple))
    assert made.sizes.channels % multiple == 0
    assert made.notes[1].endswith(f"rounded to a multiple of {multiple}")


@given(st.integers(1, 20000), st.floats(1e-9, 0.1))
def test_the_multiple_is_the_largest_that_divides_and_moves_the_ratio_by_less_than_a_point(width, share):
    allowed = [m for m in (1, 2, 4, 8, 16, 32, 64) if width % m == 0 and (m * share <= 0.02 or m == 1)]
    assert channel_multiple(width, share) == max(allowed)


def test_the_layers_with_the_lowest_scores_go():
    scores = Scores({"layers": torch.tensor([0.5, 0.1, 0.4, 0.2])})
    made = account(backbone_of("llava_llama"), PruningConfig(num_layers=2), scores)
    assert made.sizes.kept_layers == (0, 2)
    made = account(backbone_of("llava_llama"), PruningConfig(num_layers=2, protected_layers=[1]), scores)
    assert made.sizes.kept_layers == (0, 1)
    assert made.notes == ["layers: 4 -> 2", "protected layers: 1 (asked for)"]


def test_a_target_out_of_reach():
    low = PARAMETERS - BACKBONE_PARAMETERS
    for target in (PARAMETERS, PARAMETERS + 1, low, 1):
        assert refused(llava_7b(), target_params=target) == (
            f"target_params must lie between {low:,} (all but the language backbone) and {PARAMETERS:,} "
            f"(the model as it is), got {target:,}."
        )


@pytest.mark.parametrize("count", [32, 33])
def test_more_layers_than_there_are(count):
    assert refused(llava_7b(), num_layers=count) == (
        f"num_layers {count} would leave nothing: the model has 32 layers, remove fewer."
    )


def test_more_layers_than_may_go():
    assert refused(backbone_of("qwen3_vl"), num_layers=4) == (
        "4 of 5 layers would have to go but only 3 may: the others are protected. Ask for less, or use method 'width'."
    )


class TestInARow:
    """Layers by an importance of runs."""

    def wish(self, **size):
        return PruningConfig(method="layer", importance="angular", **size)

    def test_the_run_with_the_least_score_goes(self):
        runs = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
        runs[3, 0], runs[2, 1] = 0.0, 0.0
        runs = Scores({"layer_runs": runs})
        assert account(backbone_of("qwen3_vl"), self.wish(num_layers=1), runs).sizes.kept_layers == (0, 1, 2, 4)
        assert account(backbone_of("qwen3_vl"), self.wish(num_layers=2), runs).sizes.kept_layers == (0, 1, 4)
        assert account(backbone_of("qwen3_vl"), self.wish(num_layers=3), runs).sizes.kept_layers == (0, 1)

    def test_without_scores_the_last_run_stands_for_it(self):
        made = account(backbone_of("mllama"), self.wish(num_layers=2))
        assert made.sizes.kept_layers == (0, 1, 2, 3)
        # Of six layers 1 and 4 are all that look at the image.
        made = account(backbone_of("mllama"), self.wish(num_layers=2, protected_layers=[5]))
        assert made.sizes.kept_layers == (0, 1, 2, 5)

    def test_more_than_may_go(self):
        assert refused(backbone_of("qwen3_vl"), method="layer", importance="angular", num_layers=4) == (
            "4 of 5 layers would have to go in a row but no run of more than 3 may: it would hold a protected layer "
            "or the last of a kind. Ask for less, or use an importance that takes layers one by one."
        )
        line = refused(
            backbone_of("llava_llama"), method="layer", importance="angular", num_layers=2, protected_layers=[1, 2]
        )
        assert line.startswith("2 of 4 layers would have to go in a row but no run of more than 1 may: ")

    def test_a_ratio_of_more_than_may_go(self):
        line = refused(llava_7b(), method="layer", importance="angular", ratio=0.7, protected_layers=[16])
        assert line == (
            "ratio 0.700 is more than layers in a row can give: the longest run that may go is 0.481 of the language "
            "backbone. Ask for less, or use an importance that takes layers one by one."
        )


class TestMerged:
    """Layers that are merged into others."""

    def test_those_that_cannot_be_merged_stay(self):
        made = account(backbone_of("qwen3_5"), PruningConfig(num_layers=2, importance="merge"))
        assert made.sizes.kept_layers == (0, 2, 3, 5)
        assert made.notes[1].startswith(
            "protected layers: 0 (no layer is before it to be merged into), 2 (its weights"
        )

    def test_more_than_may_go(self):
        assert refused(backbone_of("qwen3_5"), num_layers=3, importance="merge") == (
            "3 of 6 layers would have to go but only 2 may: the others are protected or cannot be merged. Ask for "
            "less, or use method 'width'."
        )

    def test_none_may_go(self):
        assert refused(backbone_of("qwen3_5_moe"), ratio=0.3, method="layer", importance="merge") == (
            "ratio 0.300 would remove everything: the layers that may go are 0.000 of the language backbone, ask for "
            "less."
        )

    def test_skipped_instead_any_may_go(self):
        made = account(backbone_of("qwen3_5"), PruningConfig(num_layers=3, importance="merge", repair="none"))
        assert made.sizes.kept_layers == (0, 1, 2)


def test_a_ratio_of_less_than_half_a_layer():
    assert refused(llava_7b(), ratio=0.01, method="layer") == (
        "ratio 0.0100 removes nothing: one layer is 0.0300 of the language backbone, "
        "ask for more or use method 'width'."
    )


def test_a_ratio_of_more_than_all_layers():
    reason = refused(llava_7b(), ratio=0.99, method="layer")
    assert reason == (
        "ratio 0.990 would remove everything: the layers that may go are 0.931 of the language backbone, ask for less."
    )


def test_a_ratio_of_more_than_all_widths():
    assert refused(llava_7b(), ratio=0.97) == (
        "ratio 0.970 would remove everything: the heads and MLP channels that may go are 0.961 of the language "
        "backbone, ask for less."
    )


def test_a_ratio_of_less_than_half_a_step():
    assert refused(llava_7b(), ratio=1e-4) == (
        "ratio 0.0001 removes nothing: less than half a step of this architecture, ask for more."
    )


def test_an_mlp_that_cannot_give_what_the_heads_cannot():
    assert refused(backbone_of("qwen3_vl_moe"), ratio=0.4) == (
        "the heads cannot give their share and the MLP alone has only 96 channels: ask for less."
    )


def test_no_width_at_all(monkeypatch):
    backbone = Backbone(llava_7b().model_class, llava_7b().config)
    monkeypatch.setattr(backbone, "groups", lambda: ([], ["heads: this", "channels: that"]))
    assert refused(backbone, ratio=0.2) == (
        "no width of this architecture can be changed (heads: this; channels: that): use method 'layer'."
    )


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"ratio": 0.2}, "this architecture cannot express 52 MLP channels: too narrow"),
        ({"num_layers": 1}, "this architecture's config cannot express the plan: too narrow"),
    ],
)
def test_sizes_that_the_config_rejects(wish, reason, monkeypatch):
    def rejecting(*_):
        raise NotExpressibleError("too narrow")

    monkeypatch.setattr(Backbone, "built", rejecting)
    backbone = Backbone(backbone_of("qwen2_vl").model_class, backbone_of("qwen2_vl").config)
    assert refused(backbone, **wish) == reason


@pytest.mark.parametrize("layer", [-1, 32])
def test_a_protected_layer_that_is_none(layer):
    assert refused(llava_7b(), num_layers=2, protected_layers=[0, layer]) == (
        f"protected_layers has {layer}, the model's layers are 0 to 31."
    )


@pytest.mark.parametrize("head_share", [0.0, 0.5, 1.0])
def test_heads_go_as_fast_as_they_are_asked_to(head_share):
    made = account(llava_7b(), PruningConfig(ratio=0.3, head_share=head_share))
    heads_gone = 1 - (made.sizes.heads or 32) / 32
    channels_gone = 1 - made.sizes.channels / 11008
    # Half a head and half a step of 64 channels is as near as it gets.
    assert abs(heads_gone - head_share * channels_gone) < 0.5 / 32 + 32 / 11008
    assert abs(made.ratio["achieved"] - 0.3) < ONE_POINT


def test_heads_give_all_where_no_channel_can_go():
    alone, even = (account(backbone_of("llama4"), PruningConfig(ratio=0.15, head_share=share)) for share in (0.0, 1.0))
    assert alone.sizes == even.sizes
    assert alone.sizes.heads < 4
    assert alone.sizes.channels is None


def test_mlp_alone_cannot_give_more_than_it_has():
    assert refused(llava_7b(), ratio=0.7, head_share=0.0) == (
        "ratio 0.700 would remove everything: the heads and MLP channels that may go are 0.642 of the language "
        "backbone, ask for less."
    )


@pytest.mark.parametrize("multiple", [2048, 97])
def test_a_channel_multiple_beyond_the_mlp_is_named(multiple):
    line = refused(backbone_of("llava_llama_gqa"), ratio=0.3, channel_multiple=multiple)
    assert line == (
        f"channel_multiple {multiple} is too coarse for the 65 of 96 MLP channels that are to stay: choose a smaller "
        "one."
    )


def test_a_channel_multiple_far_above_what_is_to_stay_is_named():
    line = refused(backbone_of("llava_llama_gqa"), ratio=0.6, channel_multiple=90)
    assert line.startswith("channel_multiple 90 is too coarse for the ")


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("layer_share", [0.25, 0.5, 0.75])
def test_mixed_of_llava_7b_is_within_a_point(ratio, layer_share):
    made = account(llava_7b(), PruningConfig(ratio=ratio, method="mixed", layer_share=layer_share))
    assert abs(made.ratio["achieved"] - ratio) < ONE_POINT
    layers = len(made.sizes.kept_layers)
    # The nearest number of layers to their share; the width of the others gives the rest.
    by_layers = (32 - layers) * 202_383_360 / BACKBONE_PARAMETERS
    assert abs(by_layers - layer_share * ratio) <= 0.5 * 202_383_360 / BACKBONE_PARAMETERS
    heads = made.sizes.heads or 32
    gone = layers * 4096 * (4 * 128 * (32 - heads) + 3 * (11008 - made.sizes.channels)) + (32 - layers) * 202_383_360
    assert made.parameters["after"] == PARAMETERS - gone


def test_mixed_with_less_than_half_a_layer():
    assert refused(llava_7b(), ratio=0.02, method="mixed", layer_share=0.2) == (
        "for layer_share 0.2: ratio 0.0040 removes nothing: one layer is 0.0300 of the language backbone, ask for "
        "more or use method 'width'."
    )


@pytest.mark.parametrize(("layer_share", "hidden_share"), [(0.0, 0.25), (0.0, 0.5), (0.25, 0.25), (0.4, 0.5)])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_mixed_with_the_hidden_size_is_within_a_point(ratio, layer_share, hidden_share):
    wish = PruningConfig(ratio=ratio, method="mixed", layer_share=layer_share, hidden_share=hidden_share)
    made = account(llava_7b(), wish)
    assert abs(made.ratio["achieved"] - ratio) < 0.01
    assert 32 - len(made.sizes.kept_layers) == round(ratio * layer_share / 0.03)
    # Of all parameters of the backbone but some norms, a share of the dimensions of the stream is as large a share.
    by_hidden = (4096 - made.sizes.hidden) / 4096 * (1 - ratio * layer_share)
    assert abs(by_hidden - hidden_share * ratio) < 0.02
    assert made.sizes.channels is not None


@pytest.mark.parametrize(("ratio", "layer_share", "layers"), [(0.05, 0.95, 1), (0.14, 0.99, 4), (0.2, 0.99, 6)])
def test_layers_leave_something_for_width(ratio, layer_share, layers):
    """Also where the nearest number of layers would take more than all that is to go."""
    made = account(llava_7b(), PruningConfig(ratio=ratio, method="mixed", layer_share=layer_share))
    assert len(made.sizes.kept_layers) == 32 - layers
    assert made.sizes.channels < 11008
    assert abs(made.ratio["achieved"] - ratio) < ONE_POINT


def test_mixed_with_nothing_left_for_width():
    assert refused(llava_7b(), ratio=0.0905, method="mixed", layer_share=0.99) == (
        "by width, after 3 whole layers: ratio 0.0004 removes nothing: less than half a step of this architecture, "
        "ask for more."
    )
