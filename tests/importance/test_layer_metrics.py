"""Layers scored in sequence, against naive float64 references; greedy choice and runs by themselves."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from importance import naive_layers
from importance.naive import batch_of, calibrated, subject_of
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.backbone.merging import unmergeable
from optimum_mllm_prune.calibration.progress import Progress
from optimum_mllm_prune.calibration.stream import patched
from optimum_mllm_prune.calibration.walk import Walk
from optimum_mllm_prune.importance import Subject
from optimum_mllm_prune.importance.angular import AngularDistance
from optimum_mllm_prune.importance.greedy import greedy_scores
from optimum_mllm_prune.importance.runs import runs_within


# A plain one, DeepStack, a hybrid of linear and full attention, cross-attention.
FEW = ["llava_llama_gqa", "qwen3_vl", "qwen3_5", "mllama"]


@cache
def subject(family):
    """With the layers protected that a run of the whole way would protect."""
    model = FAMILIES[family].build()
    return replace(subject_of(model), protected=frozenset(Backbone.of(model).protected_layers))


@cache
def batches(family):
    config = subject(family).model.config
    return [batch_of(family, config), batch_of(family, config, seed=1, answers=(1, 2))]


@cache
def scores(family, name):
    return calibrated(subject(family), "layer", name, batches(family))


@pytest.mark.parametrize("family", FEW)
def test_angles_are_those_of_every_run(family):
    observer = AngularDistance(subject(family))
    found = scores(family, "angular")["layer_runs"]
    expected = naive_layers.angular(subject(family), batches(family))
    number = len(subject(family).layers)
    assert expected.keys() == {(first, last + 1) for first, last in runs_within(number).nonzero().tolist()}
    for (first, count), angle in expected.items():
        assert found[first, count - 1].item() == pytest.approx(angle, rel=1e-4)
    assert torch.equal(scores(family, "angular")["layers"], found[:, 0])
    assert observer.scores()["layer_runs"].isnan().equal(~runs_within(number))


def test_small_angles_are_not_rounded_away():
    """Of 1e-5 half turns, where the cosine is 1 in fp32."""
    observer = AngularDistance(subject("llava_llama_gqa"))
    batch = batches("llava_llama_gqa")[0]
    observer.begin(batch)
    state = torch.randn(*batch.labels.shape, 64, generator=torch.Generator().manual_seed(0))
    aside = torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
    aside -= (aside * state).sum(-1, keepdim=True) / state.square().sum(-1, keepdim=True) * state
    aside *= state.norm(dim=-1, keepdim=True) / aside.norm(dim=-1, keepdim=True)
    observer._enter(None, (state,), {})
    observer._leave(0)(None, (), (state + math.pi * 1e-5 * aside, None))
    assert observer.scores()["layers"][0].item() == pytest.approx(1e-5, rel=1e-2)


def test_states_are_kept_for_one_batch_alone():
    observer = AngularDistance(subject("llava_llama_gqa"))
    handles = observer.attach()
    batch = batches("llava_llama_gqa")[0]
    observer.begin(batch)
    with torch.no_grad():
        subject("llava_llama_gqa").model(**batch.inputs)
    for handle in handles:
        handle.remove()
    assert observer.tokens == int((batch.modality != 0).sum())
    assert observer.entered == []


@pytest.mark.parametrize("family", FEW)
def test_the_layer_missed_least_goes_first(family):
    who = subject(family)
    candidates = [layer for layer in range(len(who.layers)) if layer not in who.protected]
    order, costs = naive_layers.greedy(
        candidates, partial(naive_layers.loss_without, who, batches(family)), len(who.layers)
    )
    assert_greedy(scores(family, "loss")["layers"], order, costs)


@pytest.mark.parametrize("family", [*FEW, "llava_llama_biased"])
def test_the_layer_whose_merge_turns_the_end_least_goes_first(family):
    who = subject(family)
    candidates = [i for i in range(len(who.layers)) if i not in who.protected | unmergeable(who.layers).keys()]
    order, costs = naive_layers.greedy(
        candidates, partial(naive_layers.distance_merged, who, batches(family)), len(who.layers)
    )
    assert order
    assert_greedy(scores(family, "merge")["layers"], order, costs)


def assert_greedy(found, order, costs):
    """Scores are what each layer cost at its turn, where a later one cost less what the one before did."""
    assert found.argsort(stable=True)[: len(order)].tolist() == order
    highest = 0.0
    for layer, cost in zip(order, costs, strict=True):
        highest = max(highest, cost)
        assert found[layer].item() == pytest.approx(highest, rel=1e-4, abs=1e-6)
    never = [layer for layer in range(len(found)) if layer not in order]
    assert found[never].tolist() == pytest.approx([2 * highest] * len(never), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["loss", "merge"])
def test_what_lies_before_a_trial_need_not_be_kept(name, monkeypatch):
    """Where layers cannot be walked one by one, as with shared keys and values, whole passes give the same."""
    kept = scores("llava_llama_gqa", name)["layers"]
    monkeypatch.setattr(Walk, "_can_skip", lambda walk: False)
    whole = calibrated(subject("llava_llama_gqa"), "layer", name, batches("llava_llama_gqa"))["layers"]
    torch.testing.assert_close(whole, kept, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["loss", "merge"])
def test_the_model_is_as_before(name):
    model = FAMILIES["llava_llama_gqa"].build()
    before = dict(model.named_parameters())
    values = {name: weight.clone() for name, weight in before.items()}
    calibrated(subject_of(model), "layer", name, batches("llava_llama_gqa"))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] and torch.equal(after[key], values[key]) for key in before)
    assert all("forward" not in module.__dict__ for module in model.modules())
    layers = subject_of(model).layers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layers.modules())


@pytest.mark.parametrize("name", ["loss", "merge"])
def test_images_are_looked_at_once(name):
    who, looks = subject("llava_llama_gqa"), []
    tower = who.model.get_encoder(modality="image")
    handle = tower.register_forward_hook(lambda *_: looks.append(1))
    with patched(tower, lambda *args, forward=tower.forward, **inputs: looks.append(2) or forward(*args, **inputs)):
        calibrated(who, "layer", name, batches("llava_llama_gqa"))
    handle.remove()
    # It is asked in every trial and works once a batch, and once more to see what layers give.
    assert looks.count(2) == len(batches("llava_llama_gqa")) + 1
    assert looks.count(1) > 10


@pytest.mark.parametrize(("name", "most"), [("loss", 0.75), ("merge", 0.85)])
def test_a_trial_is_about_half_a_pass(name, most, monkeypatch):
    """Layers that run, against those that run where nothing is kept; of so few some run for other reasons."""
    config = FAMILIES["llava_llama_gqa"].config()
    config.text_config.num_hidden_layers = 10
    model = AutoModelForImageTextToText.from_config(config).eval()
    who, runs = Subject(model, "model.language_model.layers", (), 0), []
    for layer in who.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))

    def count():
        runs.clear()
        calibrated(who, "layer", name, batches("llava_llama_gqa")[:1])
        return len(runs)

    kept = count()
    monkeypatch.setattr(Walk, "_can_skip", lambda walk: False)
    assert kept < most * count()


@given(st.integers(1, 6), st.data())
def test_greedy(number, data):
    """Costs of sets are drawn from few values, so that many tie, some of them not a number."""
    candidates = data.draw(st.sets(st.integers(0, number - 1)))
    cost = {}

    def of(gone):
        return cost.setdefault(frozenset(gone), data.draw(st.sampled_from([0.0, 1.0, 2.0, math.nan])))

    asked = []

    @contextmanager
    def start(gone):
        asked.append([])

        def trial(layer):
            asked[-1].append(layer)
            return of([*gone, layer])

        yield trial

    found = greedy_scores(candidates, number, start, Progress())
    order = []
    for tried in asked:
        assert tried == sorted(candidates - set(order))
        order.append(min(tried, key=lambda layer: (math.inf if math.isnan(c := of([*order, layer])) else c, layer)))
    assert len(order) == min(len(candidates), number - 1)
    if found.isfinite().all():
        assert found.argsort(stable=True)[: len(order)].tolist() == order
        assert found[order].unique().numel() == len(order)
        never = [layer for layer in range(number) if layer not in order]
        assert not order or (found[never] > found[order].max()).all()
    else:
        assert any(math.isnan(c) for c in cost.values())
