"""The least ratio that is enough: small enough by the accounting, and no smaller one would be."""

from functools import cache

import pytest
import torch
from backbone.llava_7b import llava_7b
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.backbone import Backbone, model_class_of
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.planning import account
from optimum_mllm_prune.planning.byte_sizes import in_gigabytes, parse_size
from optimum_mllm_prune.planning.fitting import raised, ratio_for_bytes, ratio_that_fits
from optimum_mllm_prune.planning.footprint import Load, footprint


BF16 = torch.bfloat16
GB = 10**9


@cache
def backbone_of(family):
    config = FAMILIES[family].config()
    return Backbone(model_class_of(config), config)


def wish(method, **more):
    return PruningConfig(method=method, **more)


def weights_at(backbone, method, ratio, dtype=BF16):
    return account(backbone, wish(method, ratio=ratio)).parameters["after"] * dtype.itemsize


def reason_of(call):
    with pytest.raises(UserInputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("size", [6 * GB, 13 * GB])
def test_weights_of_a_7b_by_width(size):
    ratio = ratio_for_bytes(llava_7b(), wish("width"), size, BF16)
    assert weights_at(llava_7b(), "width", ratio) <= size < weights_at(llava_7b(), "width", ratio - 0.001)


@pytest.mark.parametrize(("size", "layers"), [(2 * 6_051_510_272, 5), (2 * 6_051_510_272 - 1, 6), (10.1 * GB, 10)])
def test_weights_of_a_7b_by_layers_are_whole_layers(size, layers):
    ratio = ratio_for_bytes(llava_7b(), wish("layer"), int(size), BF16)
    made = account(llava_7b(), wish("layer", ratio=ratio))
    assert len(made.sizes.kept_layers) == 32 - layers
    assert made.ratio["achieved"] == ratio
    assert ratio == account(llava_7b(), wish("layer", num_layers=layers)).ratio["achieved"]


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["layer", "width"]), st.floats(0.6, 0.99))
def test_any_size_of_a_small_one(method, share):
    backbone = backbone_of("llava_qwen2")
    size = int(share * backbone.parameters * 4)
    ratio = ratio_for_bytes(backbone, wish(method), size, torch.float32)
    assert weights_at(backbone, method, ratio, torch.float32) <= size


@pytest.mark.parametrize("method", ["layer", "width"])
def test_what_fits_fits_and_is_the_least_that_does(method):
    load, available = Load(BF16, 1, 4096, 1), 12 * GB

    def total(ratio):
        return footprint(llava_7b(), load, account(llava_7b(), wish(method, ratio=ratio)).sizes).total

    ratio = ratio_that_fits(llava_7b(), wish(method), available, load)
    step = 0.001 if method == "width" else 202_383_360 / 6_738_939_904
    assert total(ratio) <= available < total(ratio - step)
    # For the weights alone less would have to go.
    assert ratio_for_bytes(llava_7b(), wish(method), available, BF16) < ratio


@pytest.mark.slow
def test_what_a_plan_is_asked_for_besides_is_kept():
    even, mlp = (wish("width", head_share=share, ratio=0.9) for share in (1.0, 0.0))
    load = Load(BF16, 4, 4096, 1)
    # Without heads the cache stays, so that more has to go.
    assert ratio_that_fits(llava_7b(), mlp, 19 * GB, load) > ratio_that_fits(llava_7b(), even, 19 * GB, load)
    assert (even.ratio, mlp.ratio) == (0.9, 0.9)


def test_a_size_that_was_given_otherwise_is_not_looked_at():
    ratios = {ratio_for_bytes(llava_7b(), wish("layer", **size), 10 * GB, BF16) for size in ({}, {"num_layers": 2})}
    assert ratios == {ratio_for_bytes(llava_7b(), wish("layer", target_params=5 * GB), 10 * GB, BF16)}


def test_a_plan_that_is_too_large_is_raised_until_it_is_not():
    asked = []

    def plan_at(ratio):
        asked.append(ratio)
        return ratio

    assert raised(0.3, 0.3, lambda plan: plan > 0.3125, plan_at) == 0.315
    assert asked == [0.305, 0.31, 0.315]
    assert raised(0.3, 0.3, lambda plan: True, plan_at) == 0.3
    assert raised(0.98, 0.98, lambda plan: False, plan_at) == 0.995


def test_nothing_to_prune():
    assert reason_of(lambda: ratio_for_bytes(llava_7b(), wish("width"), 20 * GB, BF16)) == (
        "the weights take 14.13 GB and 20.00 GB are allowed: there is nothing to prune, give a smaller size."
    )
    line = reason_of(lambda: ratio_that_fits(llava_7b(), wish("width"), 40 * GB, Load(BF16, 4, 4096, 1)))
    now = footprint(llava_7b(), Load(BF16, 4, 4096, 1))
    assert line == (
        f"the model as it is takes {now.total / 1e9:.2f} GB (weights 14.13 GB, cache 8.59 GB, activations "
        f"{now.activations / 1e9:.2f} GB) and 40.00 GB are there: it fits, there is nothing to prune."
    )


@pytest.mark.parametrize(("method", "largest"), [("layer", 0.931), ("width", 0.947)])
def test_weights_out_of_reach(method, largest):
    line = reason_of(lambda: ratio_for_bytes(llava_7b(), wish(method), GB // 2, BF16))
    left = weights_at(llava_7b(), method, 0.93 if method == "layer" else 0.947)
    assert line.startswith(
        f"0.50 GB are out of reach by method '{method}': at ratio {largest}, its largest, the weights"
    )
    assert line.endswith(f" still take {left / 1e9:.2f} GB; allow more.")


@pytest.mark.parametrize(
    ("load", "available", "advice"),
    [
        (Load(BF16, 1, 40960, 1), 3 * GB, "; take a shorter context."),
        (Load(BF16, 4, 40960, 1), 3 * GB, "; take a shorter context or fewer rows."),
        (Load(BF16, 4, 40960, 3), 3 * GB, "; take a shorter context, fewer rows or fewer images."),
        (Load(torch.float32, 1, 40960, 1), 4 * GB, "; take a shorter context or a dtype of 16 bits."),
        (Load(torch.float32, 4, 4096, 2), GB, "; allow more or a dtype of 16 bits."),
        (Load(BF16, 4, 4096, 2), GB, "; allow more."),
    ],
)
def test_what_cannot_fit_says_what_would_help(load, available, advice):
    line = reason_of(lambda: ratio_that_fits(llava_7b(), wish("layer"), available, load))
    assert line.startswith(
        f"{in_gigabytes(available)} are out of reach by method 'layer': at ratio 0.931, its largest,"
    )
    assert "the model still takes " in line and "activations" in line
    assert line.endswith(advice)


def test_a_model_without_any_width(monkeypatch):
    backbone = Backbone(llava_7b().model_class, llava_7b().config)
    monkeypatch.setattr(backbone, "groups", lambda: ([], ["heads: this", "channels: that"]))
    assert reason_of(lambda: ratio_for_bytes(backbone, wish("width"), 6 * GB, BF16)) == (
        "no width of this architecture can be changed (heads: this; channels: that): use method 'layer'."
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * GB),
        ("6 gb", 6 * GB),
        ("6GiB", 6 * 2**30),
        ("7.5 GiB", 15 * 2**29),
        (".5TB", GB * 500),
        ("800MB", 800_000_000),
        ("3kib", 3072),
        (" 123 ", 123),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "5B", "6G", "-1GB", "0", "0.0001kB", "1e9", "nan", "six GB", "6 GB 3", "٣GB"]
)
def test_sizes_that_cannot_be_read(text):
    assert reason_of(lambda: parse_size(text)) == (
        f"'{text}' is not a size: write 6GB (a GB is 10^9 bytes), 6GiB (a GiB is 2^30) or a number of bytes."
    )


@given(st.integers(10**6, 10**13))
def test_a_size_in_words_is_read_back(size):
    assert abs(parse_size(in_gigabytes(size)) - size) <= max(0.005 * GB if size >= 10**8 else 5000, 1)
