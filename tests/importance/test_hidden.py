"""Scores of the residual stream against naive ones in float64, and what must not matter to them."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from families import FAMILIES
from importance import naive
from importance.naive import batch_of, calibrated, row_by_row, subject_of, with_other_padding

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.importance.registry import companions
from optimum_mllm_prune.importance.scoring import score


@cache
def model_of(family):
    return FAMILIES[family].build()


@cache
def subject_for(family, seed=0):
    model = model_of(family)
    hidden = Backbone.of(model).hidden
    return replace(subject_of(model, seed=seed), groups=(hidden.projector,) if hidden.projector else (), hidden=hidden)


def batches_of(family):
    config = model_of(family).config
    return [batch_of(family, config), batch_of(family, config, seed=1, answers=(1, 2))]


def norms_of(model):
    """Names of the norms of a Llama, written out."""
    layers = range(model.config.text_config.num_hidden_layers)
    home = "model.language_model"
    names = [f"{home}.layers.{i}.{name}" for i in layers for name in ("input_layernorm", "post_attention_layernorm")]
    return [*names, f"{home}.norm"]


def naive_energy(model, batches):
    """Every norm's mean over real tokens of x^2 over the mean of x^2."""
    shares = {name: [] for name in norms_of(model)}
    for batch in batches:
        states = naive.seen(model, batch, list(shares))
        for name, found in shares.items():
            entering = states[name][0]
            for row in range(len(entering)):
                for token in naive.real_tokens(batch, row):
                    squares = entering[row, token] ** 2
                    found.append(squares / squares.mean())
    return torch.stack([torch.stack(found).mean(dim=0) for found in shares.values()])


def naive_activation(model, batches):
    total = torch.zeros(64, dtype=torch.float64)
    squares = {name: torch.zeros(64, dtype=torch.float64) for name in norms_of(model)}
    for batch in batches:
        states = naive.seen(model, batch, list(squares))
        for name in squares:
            given = states[name][1]
            for row in range(len(given)):
                tokens = naive.real_tokens(batch, row)
                squares[name] += (sum(given[row, token].abs() for token in tokens) / len(tokens)) ** 2
    for name in squares:
        total += squares[name].sqrt()
    return {
        "hidden": total,
        "hidden_energy": naive_energy(model, batches),
        "projector": naive_magnitude(model)["projector"],
    }


def naive_magnitude(model):
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    home = "model.language_model"
    rows = ["o_proj.weight", "down_proj.weight", "layernorm.weight", "language_model.norm.weight"]
    columns = [*(f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up")), "embed_tokens.weight"]
    total = torch.zeros(64, dtype=torch.float64)
    for name, weight in weights.items():
        if home in name and name.endswith(tuple(rows)):
            total += weight.square().reshape(64, -1).sum(dim=1)
        if (home in name and name.endswith(tuple(columns))) or name == "lm_head.weight":
            total += weight.square().sum(dim=0)
    projector = "model.multi_modal_projector."
    total += weights[f"{projector}linear_2.weight"].square().sum(dim=1) + weights[f"{projector}linear_2.bias"] ** 2
    inner = weights[f"{projector}linear_1.weight"].square().sum(dim=1) + weights[f"{projector}linear_1.bias"] ** 2
    inner = inner + weights[f"{projector}linear_2.weight"].square().sum(dim=0)
    return {"hidden": total.sqrt(), "projector": inner.sqrt()[None]}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for kind, scores in found.items():
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.double(), expected[kind], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_llama_tied"])
def test_activation_is_its_reference(family):
    found = calibrated(subject_for(family), "hidden", "activation", batches_of(family))
    assert_same(found, naive_activation(model_of(family), batches_of(family)))


@pytest.mark.parametrize("family", ["llava_llama_gqa", "llava_llama_tied"])
def test_magnitude_is_its_reference(family):
    assert_same(calibrated(subject_for(family), "hidden", "magnitude_l2", ()), naive_magnitude(model_of(family)))


def test_the_energies_of_a_layer_norm_are_those_of_what_it_gives():
    """Phi's norms take the mean off: their energies are those of what they give, weights and biases taken off it."""
    model = FAMILIES["llava_phi"].build()
    hidden = Backbone.of(model).hidden
    subject = replace(subject_of(model), groups=(hidden.projector,), hidden=hidden)
    batch = batch_of("llava_phi", model.config)
    energy = calibrated(subject, "hidden", "activation", [batch])["hidden_energy"]
    states = naive.seen(model, batch, hidden.norms)
    real = batch.modality != 0
    for name, row in zip(hidden.norms, energy, strict=True):
        norm = model.get_submodule(name).double()
        plain = (states[name][1] - norm.bias) / norm.weight
        torch.testing.assert_close(plain[real].square().mean(dim=0), row.double(), rtol=1e-3, atol=1e-4)


def test_chance_is_of_the_seed():
    first, again, other = (
        calibrated(subject_for("llava_llama_gqa", seed), "hidden", "random", ()) for seed in (1, 1, 2)
    )
    assert {kind: tuple(scores.shape) for kind, scores in first.items()} == {"hidden": (64,), "projector": (1, 64)}
    assert all(torch.equal(first[kind], again[kind]) for kind in first)
    assert not any(torch.equal(first[kind], other[kind]) for kind in first)
    assert not torch.equal(first["hidden"], first["projector"][0])


@pytest.mark.parametrize(
    ("family", "name"), [("qwen3_5", "activation"), ("got_ocr2", "activation"), ("cohere2_vision", "magnitude_l2")]
)
def test_it_scores_every_dimension(family, name):
    model, subject = model_of(family), subject_for(family)
    scores = calibrated(subject, "hidden", name, [batch_of(family, model.config)])
    shapes = {"hidden": (64,)} | ({"projector": (1, 64)} if subject.hidden.projector else {})
    shapes |= {"hidden_energy": (len(subject.hidden.norms), 64)} if name == "activation" else {}
    assert {kind: tuple(found.shape) for kind, found in scores.items()} == shapes
    assert all(found.isfinite().all() and (found > 0).all() and found.std() > 0 for found in scores.values())


def test_padding_and_batching_do_not_matter():
    family = "llava_llama_gqa"
    batch = batch_of(family, model_of(family).config)
    found, padded = (
        calibrated(subject_for(family), "hidden", "activation", [one])["hidden"]
        for one in (batch, with_other_padding(batch))
    )
    torch.testing.assert_close(padded, found, rtol=1e-5, atol=1e-6)
    rows = calibrated(subject_for(family), "hidden", "activation", row_by_row(batch))["hidden"]
    torch.testing.assert_close(rows, found, rtol=1e-4, atol=1e-6)


def test_layers_and_width_are_scored_beside_it():
    model = model_of("llava_llama_gqa")
    config = PruningConfig(method="hidden", importance="magnitude_l2")
    scores, calibration = score(model, None, Backbone.of(model), config, None)
    assert scores.metrics == {"hidden": "magnitude_l2", "layer": "magnitude", "width": "magnitude_l2"}
    assert scores.tensors.keys() == {"hidden", "projector", "layers", "heads", "channels"}
    assert calibration is None
    assert companions("hidden", "activation") == {"layer": "block_influence", "width": "activation"}


def test_what_cannot_be_narrower_is_refused_before_it_is_scored():
    model = model_of("qwen2_vl")
    with pytest.raises(UserInputError) as refused:
        score(model, None, Backbone.of(model), PruningConfig(method="hidden"), None)
    assert str(refused.value) == (
        "the hidden size of this architecture cannot be changed (qwen2_vl_text derives the head size as hidden_size / "
        "num_attention_heads, so every head would change): use method 'width' or 'layer'."
    )
