"""Scores in which image, prompt and answer tokens count differently."""

from dataclasses import replace
from functools import cache
from math import prod

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from importance import naive
from importance.naive import batch_of, each_unit, in_double, owned, readers, seen, subject_of

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.engine import run_calibration
from optimum_mllm_prune.importance import METRICS, Scores
from optimum_mllm_prune.importance.scoring import _gathered, _kept_apart, score


NAMES = ("image", "prompt", "answer")
WEIGHTS = [dict(zip(NAMES, values, strict=True)) for values in ((0.5, 1.0, 2.0), (0.0, 1.0, 0.0), (1.0, 0.0, 3.0))]
WEIGHED = [(method, name) for name, found in METRICS.items() for method in found if found[method].weighs_tokens]


@cache
def model_of(family):
    return FAMILIES[family].build()


@cache
def batches_of(family):
    config = model_of(family).config
    return [batch_of(family, config), batch_of(family, config, seed=1, answers=(1, 2))]


@cache
def observed(family, method, name):
    metric, subject = METRICS[name][method], subject_of(model_of(family))
    observer = metric.create(subject)
    backward = metric.needs == "backward"
    run_calibration(subject.model, batches_of(family), [observer], subject.layers, backward)
    return observer


def weighted(family, method, name, weights):
    observer = observed(family, method, name)
    units = {group.kind: group.units for group in observer.subject.groups} | {"layers": 1}
    vector = torch.tensor([weights[one] for one in NAMES], dtype=torch.float64)
    return {kind: observer.combined(found, vector, units[kind]) for kind, found in observer.statistics().items()}


class Naive:
    """Each metric in float64, token by token, with each token's weight."""

    def __init__(self, family, weights):
        self.subject, self.weights = subject_of(model_of(family)), [0.0, *(weights[name] for name in NAMES)]
        self.batches = batches_of(family)

    def tokens(self, states, name, columns):
        """Of each row: (real token's state, weight) pairs."""
        for batch, found in states:
            for row, modality in enumerate(batch.modality.tolist()):
                yield [
                    (found[name][0][row, token, columns], self.weights[kind])
                    for token, kind in enumerate(modality)
                    if kind
                ]

    def over_columns(self, value):
        """Sum over a unit's columns of value(states and weights of a column, the weight matrix's column)."""
        states = [(batch, seen(self.subject.model, batch, readers(self.subject))) for batch in self.batches]
        matrices = {name: p.detach().double() for name, p in self.subject.model.named_parameters()}

        def of(kind, layer, unit):
            _, (reader, columns) = owned(self.subject, kind, layer, unit)
            rows = list(self.tokens(states, reader.removesuffix(".weight"), columns))
            x = torch.stack([state for row in rows for state, _ in row])
            w = torch.tensor([weight for row in rows for _, weight in row], dtype=torch.float64)
            return sum(value(x[:, i], w, matrices[reader][:, column]) for i, column in enumerate(columns))

        return each_unit(self.subject, of)

    def wanda(self):
        return self.over_columns(lambda x, w, column: ((w * x * x).sum() * (column * column).sum()).sqrt())

    def fluctuation(self):
        def value(x, w, column):
            mean = (w * x).sum() / w.sum()
            return (w * (x - mean) ** 2).sum() / w.sum() * (column * column).sum()

        return self.over_columns(value)

    def activation(self):
        states = [(batch, seen(self.subject.model, batch, readers(self.subject))) for batch in self.batches]

        def of(kind, layer, unit):
            _, (reader, columns) = owned(self.subject, kind, layer, unit)
            rows = list(self.tokens(states, reader.removesuffix(".weight"), columns))
            scale = sum(sum(w for _, w in row) / len(row) for row in rows) / len(rows)
            means = [sum(w * x.square().sum().sqrt() for x, w in row) / len(row) / scale for row in rows]
            return sum(mean**2 for mean in means) ** 0.5

        return each_unit(self.subject, of)

    def block_influence(self):
        names = [f"{self.subject.layers_prefix}.{i}" for i in range(len(self.subject.layers))]
        top, bottom = torch.zeros(2, len(names), dtype=torch.float64)
        for batch in self.batches:
            states = seen(self.subject.model, batch, names)
            for layer, name in enumerate(names):
                for row, modality in enumerate(batch.modality.tolist()):
                    for token, kind in enumerate(modality):
                        a, b = (side[row, token] for side in states[name])
                        top[layer] += self.weights[kind] * (1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt())
                        bottom[layer] += self.weights[kind]
        return {"layers": top / bottom}

    def taylor_group(self):
        products = [self.products(batch) for batch in self.batches]

        def of(kind, layer, unit):
            _, (reader, columns) = owned(self.subject, kind, layer, unit)
            total = 0.0
            for batch, found in zip(self.batches, products, strict=True):
                each = found[reader.removesuffix(".weight")][..., columns].sum(dim=-1)
                total += sum(self.weights[kind] * each[i, j] for i, j, kind in _places(batch.modality))
            return abs(total)

        return each_unit(self.subject, of)

    def products(self, batch):
        """x dL/dx at every reader, of the batch's part in the mean loss over all answer tokens."""
        model, moved = in_double(self.subject.model, batch)
        inputs = {}
        for name in readers(self.subject):

            def keep(_, args, name=name):
                args[0].retain_grad()
                inputs[name] = args[0]

            model.get_submodule(name).register_forward_pre_hook(keep)
        share = batch.answer_tokens / sum(one.answer_tokens for one in self.batches)
        (naive.loss(model, moved) * share).backward()
        return {name: (x * x.grad).detach() for name, x in inputs.items()}


def _places(modality):
    return [(i, j, kind) for i, row in enumerate(modality.tolist()) for j, kind in enumerate(row)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize(("method", "name"), WEIGHED)
def test_it_is_its_reference(method, name, weights):
    family = "llava_llama_biased"
    expected = getattr(Naive(family, weights), name)()
    found = weighted(family, method, name, weights)
    assert found.keys() == expected.keys()
    for kind, scores in found.items():
        atol = 1e-5 * float(expected[kind].max())
        torch.testing.assert_close(scores, expected[kind], rtol=1e-4, atol=atol)
        plain = observed(family, method, name).scores()[kind]
        assert not torch.allclose(scores.float() / scores.mean(), plain / plain.mean(), rtol=1e-2)


@given(values=st.lists(st.floats(0.1, 10), min_size=3, max_size=3), scale=st.sampled_from([0.25, 4.0, 16.0]))
@settings(max_examples=20, deadline=None)
def test_only_how_weights_compare_decides(values, scale):
    powers = {"wanda": 0.5, "taylor_group": 1.0}
    for method, name in WEIGHED:
        weights = dict(zip(NAMES, values, strict=True))
        one = weighted("llava_llama_gqa", method, name, weights)
        other = weighted("llava_llama_gqa", method, name, {key: scale * value for key, value in weights.items()})
        for kind, scores in one.items():
            torch.testing.assert_close(other[kind], scores * scale ** powers.get(name, 0.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_told_apart_in_every_block(family):
    """In the decoder as the batch says; outside it every position is of an image."""
    model = FAMILIES[family].build()
    batch, subject = batch_of(family, model.config), subject_of(model)
    observer = METRICS["fluctuation"]["width"].create(subject)
    shapes = {}

    def note(name):
        return lambda _, args: shapes.update({name: args[0].shape[:-1]})

    for group in subject.groups:
        for site in group.sites:
            model.get_submodule(site.reader_module).register_forward_pre_hook(note(site.reader_module))
    run_calibration(model, [batch], [observer], subject.layers, backward=False)
    counts = [int((batch.modality == kind).sum()) for kind in (1, 2, 3)]
    for group in subject.groups:
        for site, tokens in zip(group.sites, observer.statistics()[group.kind]["tokens"].tolist(), strict=True):
            assert tokens == (counts if site.layer is not None else [prod(shapes[site.reader_module]), 0, 0])


ROWS = list(tiny_llava.rows())[:4]


@cache
def calibrated(name, method="width", **weights):
    model = tiny_llava.model()
    config = PruningConfig(method=method, importance=name, modality_weights=weights or None)
    return score(model, tiny_llava.processor(), Backbone.of(model), config, ROWS)[0]


@pytest.mark.parametrize(("method", "name"), WEIGHED)
def test_saved_scores_weighted_anew_are_those_of_a_new_calibration(method, name, tmp_path):
    weights = {"image": 0.5, "prompt": 0.0, "answer": 2.0}
    plain, fresh = calibrated(name, method), calibrated(name, method, **weights)
    plain.save(tmp_path)
    again = Scores.load(tmp_path).weighted(weights)
    assert again.modality_weights == fresh.modality_weights == weights
    assert all(torch.equal(again.tensors[kind], found) for kind, found in fresh.tensors.items())
    assert again.fingerprint == fresh.fingerprint != plain.fingerprint
    fresh.save(tmp_path)
    back = Scores.load(tmp_path)
    assert back.modality_weights == weights
    assert back.weighted(None).fingerprint == plain.fingerprint
    assert plain.weighted(dict.fromkeys(NAMES, 1.0)).fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", ["wanda", "activation"])
def test_blocks_outside_the_decoder_are_weighted_too(name):
    """They see images alone."""
    model = model_of("idefics2")
    subject = subject_of(model)
    observer = METRICS[name]["width"].create(subject)
    run_calibration(model, [batch_of("idefics2", model.config)], [observer], subject.layers, backward=False)
    tensors = _gathered([observer.scores()], subject.groups, Backbone.of(model))
    statistics = _kept_apart([observer], subject.groups, Backbone.of(model))
    scores = Scores(tensors, {"width": name}, statistics=statistics)
    assert tensors["channels_outside"].shape == (1, 96)
    heavier = scores.weighted({"image": 4.0}).tensors
    scale = {"wanda": 2.0, "activation": 1.0}[name]
    torch.testing.assert_close(heavier["channels_outside"], scale * tensors["channels_outside"])
    assert not torch.allclose(heavier["channels"], scale * tensors["channels"], rtol=1e-2)
    with pytest.raises(UserInputError, match=r"tell nothing of the channels_outside of block 0: give others a weight"):
        scores.weighted({"image": 0.0})


def test_layers_are_weighted_in_the_same_passes():
    weights = {"image": 0.0, "prompt": 1.0, "answer": 1.0}
    by_width, by_layer = calibrated("wanda", **weights), calibrated("block_influence", "layer", **weights)
    assert by_width.metrics["layer"] == "block_influence"
    torch.testing.assert_close(by_width.tensors["layers"], by_layer.tensors["layers"])
    assert not torch.allclose(by_width.tensors["layers"], calibrated("wanda").tensors["layers"], rtol=1e-2)


def test_plans_of_other_weights_need_no_rows(tmp_path):
    made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
    config = PruningConfig(ratio=0.3, importance="wanda")
    plain = made.plan(config, ROWS)
    made.scores.save(tmp_path)
    weights = {"image": 0, "answer": 8}
    wish = PruningConfig(ratio=0.3, importance="wanda", modality_weights=weights)
    fresh = made.plan(wish, ROWS)
    again = made.plan(wish, scores=Scores.load(tmp_path))
    assert replace(again, config={}) == replace(fresh, config={})
    assert again.notes[-1] == "weights of tokens: image 0, prompt 1, answer 8"
    assert again.scores == made.scores.fingerprint
    assert again.removed_channels != plain.removed_channels
    assert made.plan(config, scores=made.scores).removed_channels == plain.removed_channels


class TestRefused:
    def test_tokens_that_are_not_there(self):
        rows = [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "one"}]}
            for text in ("How many?", "Which?")
        ]
        pruner = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        config = PruningConfig(importance="wanda", modality_weights={"prompt": 0, "answer": 0})
        with pytest.raises(UserInputError) as told:
            pruner.score(config, rows)
        assert str(told.value) == (
            "tokens of these modality_weights tell nothing of the heads of layer 0: give others a weight as well."
        )

    def test_tokens_that_do_not_reach_the_loss(self):
        """In the last layer, only the tokens that foretell an answer do."""
        with pytest.raises(UserInputError) as told:
            calibrated("taylor_group", image=1.0, prompt=0.0, answer=0.0)
        assert str(told.value) == (
            "tokens of these modality_weights tell nothing of the heads of layer 7: give others a weight as well."
        )

    def test_scores_without_statistics(self):
        scores = replace(calibrated("wanda"), statistics={})
        assert scores.weighted(None) is scores
        with pytest.raises(UserInputError) as told:
            scores.weighted(WEIGHTS[0])
        assert str(told.value) == "the scores were made before tokens were kept apart by modality: calibrate again."
