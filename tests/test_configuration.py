"""PruningConfig: what it accepts, what it says when it does not, and that it survives a file."""

import json

import pytest

from optimum_mllm_prune.configuration import DEFAULT_RATIO, PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.version import __version__


METRICS = (
    "activation, angular, block_influence, fluctuation, loss, magnitude, magnitude_l1, magnitude_l2, merge, random, "
    "reconstruction, taylor, taylor_group, taylor_mixed, taylor_second, wanda"
)
WIDTH_METRICS = (
    "taylor, taylor_second, taylor_mixed, taylor_group, activation, wanda, fluctuation, reconstruction, magnitude_l1, "
    "magnitude_l2, random"
)
KEYS = [
    "method",
    "ratio",
    "num_layers",
    "target_params",
    "layer_share",
    "hidden_share",
    "importance",
    "num_samples",
    "batch_size",
    "head_unit",
    "head_share",
    "channel_multiple",
    "allow_twin",
    "repair",
    "repair_samples",
    "steps",
    "protected_layers",
    "modality_weights",
    "gradient_checkpointing",
    "seed",
    "dataset",
    "dataset_split",
    "base_model",
    "base_model_revision",
]


def reason_of(**values):
    with pytest.raises(UserInputError) as error:
        PruningConfig(**values)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "method", "ratio", "importance"),
    [
        ({}, "width", DEFAULT_RATIO, "reconstruction"),
        ({"ratio": 0.3}, "width", 0.3, "reconstruction"),
        ({"target_params": 5_000_000_000}, "width", None, "reconstruction"),
        ({"num_layers": 5}, "layer", None, "block_influence"),
        ({"method": "layer"}, "layer", DEFAULT_RATIO, "block_influence"),
        ({"method": "layer", "target_params": 5}, "layer", None, "block_influence"),
        ({"method": "width", "importance": "random"}, "width", DEFAULT_RATIO, "random"),
        ({"num_layers": 5, "importance": "random"}, "layer", None, "random"),
        ({"method": "hidden"}, "hidden", DEFAULT_RATIO, "activation"),
    ],
)
def test_what_is_not_said_follows(given, method, ratio, importance):
    config = PruningConfig(**given)
    assert (config.method, config.ratio, config.importance) == (method, ratio, importance)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, 15, float("nan"), float("inf"), "0.3", True])
def test_ratios_that_are_none(ratio):
    assert reason_of(ratio=ratio) == (
        f"ratio must lie between 0 and 1 (0.15 removes 15 % of the language backbone), got {ratio}."
    )


@pytest.mark.parametrize("key", ["num_layers", "target_params", "num_samples", "batch_size", "channel_multiple"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "5", True])
def test_counts_that_are_none(key, value):
    assert reason_of(**{key: value}) == f"{key} must be a whole number of at least 1, got {value}."


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ({"ratio": 0.3, "num_layers": 5}, "ratio and num_layers"),
        ({"num_layers": 5, "target_params": 6}, "num_layers and target_params"),
        ({"ratio": 0.3, "num_layers": 5, "target_params": 6}, "ratio and num_layers and target_params"),
    ],
)
def test_two_sizes(sizes, names):
    assert reason_of(**sizes) == f"{names} both say how much to remove: give one of them."


@pytest.mark.parametrize("key", ["layer", "hidden"])
@pytest.mark.parametrize("share", [-0.1, 1, 1.5, "0.5", float("nan")])
def test_shares_that_are_none(key, share):
    by = {"layer": "whole layers", "hidden": "the hidden size"}[key]
    assert reason_of(**{f"{key}_share": share}) == (
        f"{key}_share must lie between 0 and 1 (0.5 takes half of it by {by}), got {share}."
    )


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.2), (0, 0)])
def test_shares_that_leave_nothing_or_everything(shares):
    assert reason_of(method="mixed", layer_share=shares[0], hidden_share=shares[1]) == (
        "layer_share and hidden_share must leave something for heads and channels, and not all of it: their sum must "
        f"lie between 0 and 1, got {sum(shares):g}."
    )


def test_the_share_of_layers_by_default():
    assert PruningConfig(method="mixed").shares == (0.5, 0.0)
    assert PruningConfig(method="mixed", hidden_share=0.4).shares == (0.0, 0.4)
    assert PruningConfig(method="mixed", hidden_share=0.4, layer_share=0.1).shares == (0.1, 0.4)
    assert [PruningConfig(method=m).shares for m in ("layer", "width", "hidden")] == [(1, 0), (0, 0), (0, 1)]


@pytest.mark.parametrize("method", ["width", "mixed", "hidden"])
def test_layers_by_width(method):
    assert reason_of(method=method, num_layers=5) == (
        "num_layers removes whole layers: use it with method 'layer', or give a ratio."
    )


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("method", "depth", "auto, layer, width, mixed, hidden"),
        ("head_unit", "head", "auto, group, query"),
        ("importance", "tailor", METRICS),
    ],
)
def test_unknown_names(key, value, allowed):
    assert reason_of(**{key: value}) == f"unknown {key} '{value}': use one of {allowed}."


@pytest.mark.parametrize("metric", ["block_influence", "magnitude"])
def test_a_metric_of_layers_for_width(metric):
    assert reason_of(importance=metric) == (
        f"importance '{metric}' does not score what method 'width' removes: use one of {WIDTH_METRICS}."
    )


@pytest.mark.parametrize("metric", ["taylor", "taylor_group", "activation", "wanda", "magnitude_l1", "magnitude_l2"])
def test_a_metric_of_width_for_layers(metric):
    assert reason_of(num_layers=2, importance=metric) == (
        f"importance '{metric}' does not score what method 'layer' removes: "
        "use one of block_influence, angular, loss, merge, magnitude, random."
    )


@pytest.mark.parametrize("method", ["width", "mixed"])
def test_a_merge_of_what_is_no_layer(method):
    assert reason_of(method=method, repair="merge") == (
        "repair 'merge' merges whole layers that go: use it with method 'layer'."
    )


def test_when_layers_are_merged():
    assert PruningConfig(num_layers=2, importance="merge").merges
    assert PruningConfig(num_layers=2, repair="merge").merges
    assert not PruningConfig(num_layers=2).merges
    assert not PruningConfig(num_layers=2, importance="merge", repair="none").merges
    assert not PruningConfig(num_layers=2, importance="merge", repair="least-squares").merges


@pytest.mark.parametrize("metric", ["taylor_second", "taylor_mixed"])
def test_rows_of_which_each_is_squared_are_not_batched(metric):
    assert reason_of(importance=metric, batch_size=8) == (
        f"importance '{metric}' squares the gradient of each row by itself: leave batch_size out, or make it 1."
    )
    assert reason_of(method="mixed", importance=metric, batch_size=2).startswith(f"importance '{metric}' squares")
    assert PruningConfig(importance=metric, batch_size=1).batch_size == 1
    assert PruningConfig(importance="taylor", batch_size=8).batch_size == 8


@pytest.mark.parametrize("metric", ["taylor", "wanda", "magnitude_l1", "block_influence", "magnitude"])
def test_another_metric_for_the_hidden_size(metric):
    assert reason_of(method="hidden", importance=metric) == (
        f"importance '{metric}' does not score what method 'hidden' removes: "
        "use one of activation, magnitude_l2, random."
    )


@pytest.mark.parametrize("layers", [3, "3", [1.5], ["1"], [True]])
def test_protected_layers_that_are_none(layers):
    assert reason_of(protected_layers=layers) == f"protected_layers must be a list of layer numbers, got {layers}."


def test_weights_of_modalities():
    config = PruningConfig(importance="wanda", modality_weights={"answer": 4})
    assert config.modality_weights == {"image": 1.0, "prompt": 1.0, "answer": 4}
    assert PruningConfig(importance="wanda").modality_weights is None
    assert PruningConfig(method="layer", modality_weights={"image": 0}).importance == "block_influence"
    assert PruningConfig(method="mixed", importance="fluctuation", modality_weights={"image": 0}).ratio == 0.15


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"video": 1.0}, "modality_weights has 'video': it takes image, prompt, answer."),
        ({"image": -1}, "modality_weights must be at least 0, and one above it, got image -1, prompt 1, answer 1."),
        (
            {"image": float("nan")},
            "modality_weights must be at least 0, and one above it, got image nan, prompt 1, answer 1.",
        ),
        (
            {"prompt": float("inf")},
            "modality_weights must be at least 0, and one above it, got image 1, prompt inf, answer 1.",
        ),
        (
            {"image": 0, "prompt": 0, "answer": 0},
            "modality_weights must be at least 0, and one above it, got image 0, prompt 0, answer 0.",
        ),
        ({"image": "all"}, "modality_weights must be an object of numbers or null, got {'image': 'all'}."),
        ([1, 2, 3], "modality_weights must be an object of numbers or null, got [1, 2, 3]."),
    ],
)
def test_weights_of_modalities_that_are_none(weights, told):
    assert reason_of(importance="wanda", modality_weights=weights) == told


@pytest.mark.parametrize(
    "metric", ["taylor", "taylor_second", "taylor_mixed", "magnitude_l1", "magnitude_l2", "random"]
)
def test_metrics_that_mix_modalities(metric):
    assert reason_of(importance=metric, modality_weights={"image": 0.5}) == (
        f"importance '{metric}' does not keep tokens apart by modality: leave modality_weights out, or use one of "
        "taylor_group, activation, wanda, fluctuation."
    )
    if metric == "random":
        assert reason_of(num_layers=2, importance=metric, modality_weights={}).endswith("one of block_influence.")


@pytest.mark.parametrize("seed", [None, 1.5, "42", -1])
def test_a_seed_that_is_none(seed):
    assert reason_of(seed=seed) == f"seed must be a whole number of at least 0, got {seed}."


def test_unknown_keys_are_named():
    assert (
        reason_of(ration=0.3, layers=2) == f"PruningConfig has no key 'layers', 'ration'; it has: {', '.join(KEYS)}."
    )


FULL = {
    "method": "width",
    "target_params": 5_000_000_000,
    "layer_share": 0.25,
    "hidden_share": 0.5,
    "importance": "wanda",
    "num_samples": 20,
    "batch_size": 4,
    "head_unit": "query",
    "head_share": 0.5,
    "channel_multiple": 32,
    "allow_twin": False,
    "repair": "none",
    "repair_samples": 64,
    "steps": 2,
    "protected_layers": [0, 31],
    "modality_weights": {"image": 0.5, "prompt": 1.0, "answer": 2.0},
    "gradient_checkpointing": True,
    "seed": 7,
    "dataset": "someone/some-rows",
    "dataset_split": "test",
    "base_model": "someone/some-model",
    "base_model_revision": "0123abc",
}


@pytest.mark.parametrize("values", [{}, {"ratio": 0.3}, {"num_layers": 5}, {"method": "layer", "ratio": 0.2}, FULL])
def test_a_file_and_back(values, tmp_path):
    config = PruningConfig(**values)
    config.save_pretrained(tmp_path)
    again = PruningConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() == PruningConfig.from_dict(config.to_dict()).to_dict()
    assert all(getattr(again, key) == value for key, value in values.items())
    assert [file.name for file in tmp_path.iterdir()] == ["pruning_config.json"]
    written = json.loads((tmp_path / "pruning_config.json").read_text())
    assert {key: written[key] for key in KEYS} == {key: getattr(config, key) for key in KEYS}


def test_a_file_with_a_misspelt_key(tmp_path):
    PruningConfig().save_pretrained(tmp_path)
    file = tmp_path / "pruning_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ration": 0.3}))
    with pytest.raises(UserInputError, match="PruningConfig has no key 'ration'"):
        PruningConfig.from_pretrained(tmp_path)


def test_nothing_of_a_models_config():
    assert list(PruningConfig().to_dict()) == [*KEYS, "optimum_mllm_prune_version"]
    assert PruningConfig().to_dict()["optimum_mllm_prune_version"] == __version__
    assert PruningConfig().to_diff_dict() == PruningConfig().to_dict()
    json.dumps(PruningConfig(**FULL).to_dict())


@pytest.mark.parametrize("value", [-0.1, 1.5, True, "half"])
def test_head_share_out_of_range(value):
    with pytest.raises(UserInputError) as error:
        PruningConfig(head_share=value)
    assert str(error.value) == (
        f"head_share must be 'auto' or lie between 0 (MLP channels alone) and 1 (as much of both), got {value}."
    )


def test_errors_decide_how_much_heads_give_where_they_are_measured():
    assert PruningConfig(importance="reconstruction").head_share == "auto"
    assert PruningConfig(importance="reconstruction", head_share=0.5).head_share == 0.5
    assert PruningConfig(importance="wanda").head_share == 1.0
    assert reason_of(importance="wanda", head_share="auto") == (
        "head_share 'auto' weighs errors, which importance 'wanda' does not measure: give a number, or use importance "
        "reconstruction."
    )


@pytest.mark.parametrize("method", ["width", "mixed"])
def test_a_linear_map_stands_in_for_layers(method):
    assert reason_of(method=method, repair="linear-map") == (
        f"repair 'linear-map' stands in for removed layers: with method '{method}' use another repair."
    )
