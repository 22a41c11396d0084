"""Models whose decoder layers stay on disk: the same scores, the same checkpoint, verified; and what is refused."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import psutil
import pytest
import scenes
import torch
from families import FAMILIES
from importance.naive import batch_of
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.backbone import (
    Backbone,
    in_memory,
    is_offloaded,
    model_class_of,
    own_head,
    weight_of,
    with_layouts,
)
from optimum_mllm_prune.backbone.skeleton import count_parameters, skeleton
from optimum_mllm_prune.calibration import progress, shelf, walk
from optimum_mllm_prune.calibration.engine import run_calibration
from optimum_mllm_prune.calibration.layerwise import run_layer_by_layer
from optimum_mllm_prune.calibration.progress import Progress
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.calibration.walk import Walk
from optimum_mllm_prune.importance.observer import Subject
from optimum_mllm_prune.importance.registry import METRICS
from optimum_mllm_prune.loading import load_model
from optimum_mllm_prune.memory import SHARE
from optimum_mllm_prune.placement import layers_on_disk


DIGITS = Path(__file__).parents[1] / "examples" / "digit_scenes" / "llava"
# A plain one, fused projections, experts, DeepStack, cross-attention, parameters between the modules.
FEW = ["llava_llama_gqa", "llava_phi3", "qwen3_vl", "qwen3_vl_moe", "mllama", "llava_next"]


@cache
def rows():
    made = scenes.build(train=12, test=1, seed=5)["train"]
    return [normalize_row(row) for row in made]


def on_disk(config, device="cpu"):
    """A device map with the layers on disk, whatever the memory."""
    whole = count_parameters(skeleton(model_class_of(config), config)) * torch.float32.itemsize
    limit = psutil.Process().memory_info().rss + int(whole / SHARE * 0.999)
    return layers_on_disk(config, limit, torch.float32, device)


def layers_of(model):
    return Backbone.of(model).layers_prefix


@pytest.fixture(scope="module")
def digits():
    return on_disk(AutoConfig.from_pretrained(DIGITS))


def pruner(device_map=None):
    where = {"device": "cpu"} if device_map is None else {"device_map": device_map}
    return MLLMPruner.from_pretrained(str(DIGITS), dtype="float32", **where)


@pytest.mark.parametrize("family", FEW)
def test_it_computes_what_the_whole_model_does(family, tmp_path):
    whole = FAMILIES[family].build()
    whole.save_pretrained(tmp_path / "model")
    device_map = on_disk(whole.config)
    away = len(whole.get_submodule(layers_of(whole))) + (own_head(whole) is not None)
    assert sum(place == "disk" for place in device_map.values()) == away
    loaded = load_model(str(tmp_path / "model"), whole.config, device_map=device_map)
    layers = loaded.get_submodule(Backbone.of(loaded).layers_prefix)
    assert is_offloaded(loaded) and all(p.is_meta for p in layers.parameters())
    outside = {name for name, p in loaded.named_parameters() if p.is_meta and layers_of(loaded) not in name}
    assert outside == ({"lm_head.weight"} if own_head(whole) else set())
    inputs = FAMILIES[family].inputs(whole.config)
    with torch.no_grad():
        expected = whole(**inputs).logits
        assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-5)
        with in_memory(layers):
            assert not any(p.is_meta for p in layers.parameters())
            assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-5)
    assert all(p.is_meta for p in layers.parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(weight_of(loaded, name), parameter.detach())


@pytest.mark.parametrize(
    ("method", "importance"),
    [
        ("layer", "block_influence"),
        ("width", "activation"),
        ("width", "wanda"),
        ("width", "fluctuation"),
        ("width", "reconstruction"),
        ("width", "taylor"),
        ("width", "taylor_group"),
        ("width", "taylor_second"),
        ("width", "magnitude_l1"),
        ("layer", "magnitude"),
    ],
)
def test_scores_are_those_of_the_whole_model(method, importance, digits):
    size = 1 if importance == "taylor_second" else 4
    config = PruningConfig(method=method, importance=importance, num_samples=6, batch_size=size)
    whole, layerwise = (made.score(config, rows()) for made in (pruner(), pruner(digits)))
    assert whole.tensors.keys() == layerwise.tensors.keys()
    for kind, scores in whole.tensors.items():
        # Errors of a refit magnify what rounding changes in the sums.
        near = 1e-3 if importance == "reconstruction" else 1e-5
        assert torch.allclose(layerwise.tensors[kind], scores, rtol=near, atol=near * scores.abs().max()), kind


@pytest.mark.parametrize("importance", ["taylor", "taylor_group"])
@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_phi3", "qwen3_vl", "gemma3"])
def test_gradients_of_every_architecture_are_those_of_the_whole_model(family, importance, tmp_path):
    whole = FAMILIES[family].build()
    whole.save_pretrained(tmp_path / "model")
    lazily = load_model(str(tmp_path / "model"), whole.config, device_map=on_disk(whole.config))
    flags = {name: parameter.requires_grad for name, parameter in lazily.named_parameters()}
    expected, found = (_sums(model, importance, family) for model in (whole, lazily))
    for kind, sums in expected.items():
        assert sums.abs().max() > 0
        assert torch.allclose(found[kind], sums, rtol=1e-4, atol=1e-5 * sums.abs().max()), kind
    assert {name: parameter.requires_grad for name, parameter in lazily.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in lazily.parameters())


def _sums(model, importance, family):
    """What a gradient metric finds on two batches of the family's inputs."""
    backbone = Backbone.of(model)
    groups = tuple(with_layouts(group, FAMILIES[family].build()) for group in backbone.groups()[0])
    subject = Subject(model, backbone.layers_prefix, groups, seed=0)
    observer = METRICS[importance]["width"].create(subject)
    batches = [batch_of(family, model.config)] * 2
    if is_offloaded(model):
        run_layer_by_layer(model, batches, [observer], subject.layers, Progress())
    else:
        run_calibration(model, batches, [observer], subject.layers, backward=True)
    return observer.scores()


def test_gradients_that_need_more_than_the_layer_before_are_refused(tmp_path):
    whole = FAMILIES["mllama"].build()
    whole.save_pretrained(tmp_path / "model")
    lazily = load_model(str(tmp_path / "model"), whole.config, device_map=on_disk(whole.config))
    layers = lazily.get_submodule(Backbone.of(lazily).layers_prefix)
    with patch.object(Walk, "_can_skip", lambda self: False), pytest.raises(UserInputError) as told:
        observer = SimpleNamespace(backward=True)
        run_layer_by_layer(lazily, [batch_of("mllama", whole.config)], [observer], layers, Progress())
    assert str(told.value) == (
        "gradients of a model with offloaded weights need decoder layers that look at nothing but the one before: "
        "load the whole model, or choose an importance without gradients."
    )


@pytest.mark.parametrize("importance", ["block_influence", "taylor"])
def test_what_has_no_room_waits_on_disk(importance, digits, monkeypatch):
    config = PruningConfig(method="layer" if importance == "block_influence" else "width", importance=importance)
    config.num_samples, config.batch_size = 6, 2
    inside = pruner(digits).score(config, rows())
    written, put = [], shelf.offload_weight
    monkeypatch.setattr(
        shelf, "offload_weight", lambda tensor, name, *rest: written.append(name) or put(tensor, name, *rest)
    )
    monkeypatch.setattr(walk, "room_for_streams", lambda *_: 0)
    outside = pruner(digits).score(config, rows())
    assert len([name for name in written if name.startswith("into layer 2 ")]) == 3
    assert all(torch.equal(scores, outside.tensors[kind]) for kind, scores in inside.tensors.items())


@pytest.mark.parametrize("importance", ["taylor", "taylor_group", "taylor_second"])
def test_gradients_that_were_broken_off_go_on(importance, digits, tmp_path, monkeypatch):
    config = PruningConfig(method="width", importance=importance, num_samples=4)
    expected = pruner(digits).score(config, rows())
    monkeypatch.setattr(progress, "EVERY", 0.0)
    made, differentiable, runs = pruner(digits), walk.Walk.differentiable, []

    def broken_off(self, number):
        runs.append(self.layer)
        if self.layer == 2:
            raise KeyboardInterrupt
        return differentiable(self, number)

    monkeypatch.setattr(walk.Walk, "differentiable", broken_off)
    made.resume_file = tmp_path / "calibration"
    with pytest.raises(KeyboardInterrupt):
        made.score(config, rows())
    assert made.resume_file.is_file()
    last = len(made.model.get_submodule(made.backbone().layers_prefix)) - 1
    assert max(runs) == last

    monkeypatch.setattr(
        walk.Walk, "differentiable", lambda self, n: runs.append(self.layer) or differentiable(self, n)
    )
    runs.clear()
    again = pruner(digits)
    again.resume_file = tmp_path / "calibration"
    found = again.score(config, rows())
    assert max(runs) == 2
    for kind, scores in expected.tensors.items():
        torch.testing.assert_close(found.tensors[kind], scores, equal_nan=True)


def test_every_layer_is_fetched_once(digits, monkeypatch):
    made, fetched = pruner(digits), []
    layers = made.model.get_submodule(made.backbone().layers_prefix)
    for number, layer in enumerate(layers):
        hook = layer.mlp.down_proj._hf_hook
        fetch = type(hook.weights_map).__getitem__

        class Counted(type(hook.weights_map)):
            def __getitem__(self, key, number=number, fetch=fetch):
                fetched.append(number)
                return fetch(self, key)

        hook.weights_map.__class__ = Counted
    made.score(PruningConfig(method="layer", num_samples=6, batch_size=2), rows())
    # In a whole pass that finds out whether layers can be skipped, and in earnest; the last one is tried as well.
    assert [fetched.count(number) for number in range(len(layers))] == [2] * (len(layers) - 1) + [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish",
    [
        {"num_layers": 3, "importance": "block_influence"},
        {"ratio": 0.3, "importance": "wanda"},
        {"ratio": 0.4, "method": "mixed", "importance": "magnitude_l2"},
    ],
    ids=["layers", "width", "mixed"],
)
def test_the_checkpoint_is_that_of_the_whole_model(wish, digits, tmp_path):
    plan = pruner().plan(PruningConfig(repair="none", num_samples=4, **wish), rows())
    whole, lazily = pruner(), pruner(digits)
    whole.prune(plan)
    lazily.prune(plan)
    assert is_offloaded(lazily.model)
    whole.save_pretrained(tmp_path / "whole")
    report = lazily.save_pretrained(tmp_path / "lazily")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "lazily"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert report.verification.max_abs_logit_difference == 0
    assert report.verification.generated_tokens_equal is None
    told = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "lazily")]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("family", "wish"),
    [(family, {"num_layers": 1, "importance": "magnitude"}) for family in FEW]
    # Mllama's config cannot say fewer heads of the same size, and its channels differ from layer to layer.
    + [(family, {"ratio": 0.2, "importance": "magnitude_l2"}) for family in FEW if family != "mllama"],
)
def test_every_layout_is_cut_and_saved_from_disk(family, wish, tmp_path):
    whole = FAMILIES[family].build()
    whole.save_pretrained(tmp_path / "model")
    lazily = load_model(str(tmp_path / "model"), whole.config, device_map=on_disk(whole.config))
    made, config = MLLMPruner(whole), PruningConfig(**wish)
    plan, theirs = made.plan(config), MLLMPruner(lazily).plan(config)
    assert (plan.removed_layers, plan.removed_heads) == (theirs.removed_layers, theirs.removed_heads)
    expected = made.prune(plan).state_dict()
    found = MLLMPruner(lazily).prune(plan)
    found.save_pretrained(tmp_path / "pruned")
    loaded = load_model(str(tmp_path / "pruned"), found.config)
    assert expected.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_scored_planned_pruned_and_saved_from_disk(digits, tmp_path):
    made = pruner(digits)
    made.prune(PruningConfig(ratio=0.3, importance="fluctuation", num_samples=4), rows())
    assert made.repair is None
    made.save_pretrained(tmp_path / "out")
    loaded, told = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert loaded.num_parameters() == made.model.num_parameters()


def test_what_fits_stays_whole():
    assert layers_on_disk(AutoConfig.from_pretrained(DIGITS), None, torch.float32, "cpu") is None
    assert not is_offloaded(MLLMPruner.from_pretrained(str(DIGITS), device="cpu", max_memory="4GB").model)


def test_memory_that_not_even_one_layer_fits_in():
    with pytest.raises(UserInputError) as told:
        layers_on_disk(AutoConfig.from_pretrained(DIGITS), psutil.Process().memory_info().rss, torch.float32, "cpu")
    assert " of memory are too little: one decoder layer and all that stays take 2." in str(told.value)
    assert str(told.value).endswith(" more.")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PruningConfig(importance="taylor_mixed"),
            "importance 'taylor_mixed' needs all weights in memory, and some are offloaded: use one of taylor, "
            "taylor_second, taylor_group, activation, wanda, fluctuation, reconstruction, magnitude_l1, magnitude_l2, "
            "random, or load the whole model.",
        ),
        (
            PruningConfig(num_layers=2, importance="merge"),
            "importance 'merge' needs all weights in memory, and some are offloaded: use one of block_influence, "
            "magnitude, random, or load the whole model.",
        ),
        (
            PruningConfig(importance="wanda", steps=2, num_samples=2),
            "pruning in steps needs all weights in memory, and some are offloaded: load the whole model, on the CPU, "
            "on enough GPUs, or with a larger max_memory.",
        ),
        (
            PruningConfig(importance="magnitude_l2", repair="least-squares"),
            "repair 'least-squares' needs all weights in memory, and some are offloaded: use repair 'none', or load "
            "the whole model.",
        ),
        (
            PruningConfig(method="hidden", importance="magnitude_l2", ratio=0.2),
            "method 'hidden' needs all weights in memory, and some are offloaded: load the whole model, on the CPU, "
            "on enough GPUs, or with a larger max_memory.",
        ),
    ],
    ids=["taylor_mixed", "merge", "steps", "repair", "hidden"],
)
def test_what_needs_all_weights_is_refused(config, message, digits):
    with pytest.raises(UserInputError) as told:
        pruner(digits).prune(config, rows())
    assert str(told.value) == message


def test_a_device_map_and_a_limit_contradict(digits):
    with pytest.raises(UserInputError) as told:
        MLLMPruner.from_pretrained(str(DIGITS), device_map=digits, max_memory="6GB")
    assert str(told.value) == "device_map and max_memory both say what is in memory: give one of them."
