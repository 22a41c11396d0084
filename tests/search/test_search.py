"""Several plans tried on held-out rows: which ones, how they are ranked, and that the best beats both pure ways."""

import copy
import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import scenes
import torch

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.evaluation import exact_match, generate_answers, reference_answers
from optimum_mllm_prune.evaluation.likelihood import Likelihood, answer_likelihoods
from optimum_mllm_prune.evaluation.statistics import Interval
from optimum_mllm_prune.planning import make_plan
from optimum_mllm_prune.search import search
from optimum_mllm_prune.search.proposals import proposals
from optimum_mllm_prune.search.result import Search, Tried
from optimum_mllm_prune.surgery import pruned_model


search_module = import_module("optimum_mllm_prune.search.search")
DIGITS = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"


@pytest.fixture(scope="module")
def rows():
    return scenes.build(train=48, test=120, seed=11)


@pytest.fixture(scope="module")
def pruner():
    return MLLMPruner.from_pretrained(str(DIGITS), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def before(pruner):
    return {name: tensor.clone() for name, tensor in pruner.model.state_dict().items()}


@pytest.fixture(scope="module")
def found(pruner, before, rows):
    train = [rows["train"][i] for i in range(48)]
    return search(pruner, PruningConfig(ratio=0.3), train[:10], train[10:], measure_speed=False)


def test_layers_width_and_mixtures_are_tried(found):
    methods = {one.plan.method for one in found.tried}
    assert methods == {"layer", "width", "mixed"}
    assert len({one.name for one in found.tried}) == len(found.tried) >= 7
    (narrower,) = [one for one in found.tried if one.plan.removed_hidden]
    assert narrower.name == "25 % hidden size, heads and MLP as their errors say" and narrower.plan.removed_channels
    assert all(abs(one.plan.ratio["achieved"] - 0.3) < 0.06 for one in found.tried)
    assert len({one.plan.scores for one in found.tried}) == 1


def test_they_are_ranked_by_perplexity(found, pruner, rows):
    values = [one.perplexity.value for one in found.tried]
    assert values == sorted(values)
    assert found.original.value < values[0] * 1.01
    model = pruned_model(pruner.model, pruner.backbone(), found.tried[-1].plan, keep_original=True)
    held_out = [rows["train"][i] for i in range(10, 48)]
    each = answer_likelihoods(model, pruner.processor, held_out, 1)
    expected = math.exp(sum(row.nats for row in each) / sum(row.tokens for row in each))
    assert found.tried[-1].perplexity.value == pytest.approx(expected, rel=1e-3)


def test_the_best_is_at_least_as_good_as_both_pure_ways(found, pruner, rows):
    """On rows of the test split, by generation, before any training."""

    def accuracy(plan):
        model = pruned_model(pruner.model, pruner.backbone(), plan, keep_original=True)
        return exact_match(generate_answers(model, pruner.processor, rows["test"]), reference_answers(rows["test"]))

    pure = {one.name: one.plan for one in found.tried if one.name in ("layers", "heads and MLP")}
    assert len(pure) == 2
    assert accuracy(found.best.plan) >= max(accuracy(plan) for plan in pure.values())


def test_no_weight_is_touched(found, pruner, before):
    after = pruner.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_plan_says_why_it_was_taken(found):
    assert found.best.plan.notes[-1].startswith(
        f"chosen among {len(found.tried)} plans of this size by the perplexity of answers on 38 held-out rows: "
    )


def test_the_best_plan_can_be_carried_out(found, pruner):
    copied = MLLMPruner(copy.deepcopy(pruner.model), pruner.processor)
    model = copied.prune(found.best.plan)
    assert sum(p.numel() for p in model.parameters()) == found.best.plan.parameters["after"]


def test_plans_that_are_too_large_are_left_out(found, pruner):
    limit = found.best.plan.parameters["after"]
    kept, refused = proposals(
        pruner.backbone(), PruningConfig(ratio=0.3), pruner.scores, lambda _, parameters: parameters <= limit
    )
    assert all(proposal.plan.parameters["after"] <= limit for proposal in kept)
    # What is larger at that ratio is tried at a larger one.
    assert {proposal.plan.method for proposal in kept} == {"layer", "width", "mixed"}
    assert len({proposal.plan.config["ratio"] for proposal in kept}) > 1
    assert not refused


def test_every_plan_is_made_again_from_its_own_config(found, pruner):
    for one in found.tried:
        again = make_plan(pruner.backbone(), PruningConfig.from_dict(one.plan.config), pruner.scores)
        assert replace(again, notes=[]) == replace(one.plan, notes=[])


def test_a_size_out_of_reach_is_told(pruner):
    with pytest.raises(UserInputError) as error:
        proposals(pruner.backbone(), PruningConfig(ratio=0.3), pruner.scores, lambda *_: False)
    assert str(error.value) == "no plan meets this size: layers: no size of it is as small as was asked for"


@pytest.mark.parametrize("size", [{"ratio": 0.53}, {"target_params": 1_518_085}])
def test_no_plan_has_the_advantage_of_removing_too_little(pruner, size):
    """One layer is 11.9 %: four of them are nearest to 53 %, and too few."""
    kept, _ = proposals(pruner.backbone(), PruningConfig(**size), pruner.scores)
    assert kept[0].name == "layers" and len(kept[0].plan.kept_layers) == 3
    assert all(proposal.plan.ratio["achieved"] > 0.51 for proposal in kept)


def test_what_cannot_be_had_is_told(pruner):
    kept, refused = proposals(pruner.backbone(), PruningConfig(ratio=0.04), pruner.scores)
    assert kept
    assert any(line.startswith("layers: ratio 0.0400 removes nothing") for line in refused)


@pytest.mark.slow
def test_speed_is_measured(pruner, rows):
    train = [rows["train"][i] for i in range(12)]
    tried = search(pruner, PruningConfig(ratio=0.5, importance="magnitude_l2"), [], train).tried
    assert all(one.prefill_speedup > 0.3 and one.decode_speedup > 0.3 for one in tried)


def refused(*arguments):
    with pytest.raises(UserInputError) as error:
        search(*arguments)
    return str(error.value)


def test_wrong_input(pruner, rows):
    config = PruningConfig(ratio=0.3)
    assert refused(MLLMPruner(pruner.model), config, [], [1]) == "a search reads rows: give MLLMPruner a processor."
    assert refused(pruner, config, [], []) == (
        "no row is left to score plans on: give more rows, or calibrate on fewer."
    )


def test_figures_and_picture(found, tmp_path):
    found.save(tmp_path)
    told = json.loads((tmp_path / "pruning_search.json").read_text())
    assert [one["name"] for one in told["tried"]] == [one.name for one in found.tried]
    assert told["tried"][0]["perplexity"]["value"] == found.best.perplexity.value
    assert (tmp_path / "pruning_search.png").stat().st_size > 10_000
    table = found.table()
    assert {len(line) for line in table} == {6}
    assert table[2][0] == found.best.name


def test_bounds_that_are_not_known(found, tmp_path):
    alone = Interval(2.0, math.nan, math.nan, 0.95)
    one = Tried("layers", found.best.plan, alone, None, None)
    made = Search([one], alone, 1, [])
    made.save(tmp_path)
    assert json.loads((tmp_path / "pruning_search.json").read_text())["tried"][0]["perplexity"]["low"] is None
    assert made.table()[2][3:] == ("2.000", "-", "-")


@pytest.mark.slow
def test_what_overflows_is_left_out(pruner, rows, monkeypatch):
    held_out = [rows["train"][i] for i in range(4)]
    config = PruningConfig(ratio=0.5, importance="magnitude_l2")
    measured = search_module.answer_likelihoods

    def broken(which):
        def score(model, *rest):
            if which(model):
                return [Likelihood(math.nan, 1)] * len(held_out)
            return measured(model, *rest)

        monkeypatch.setattr(search_module, "answer_likelihoods", score)

    broken(lambda model: model.config.text_config.num_hidden_layers == 3)
    made = search(pruner, config, [], held_out, measure_speed=False)
    assert "layers: its perplexity is not finite" in made.refused
    assert made.tried and all(one.plan.method != "layer" for one in made.tried)
    broken(lambda model: model is not pruner.model)
    assert refused(pruner, config, [], held_out, None, False) == (
        "the perplexity of no plan is finite: ask for less, or load the model with dtype bfloat16 or float32."
    )
    broken(lambda model: model is pruner.model)
    assert refused(pruner, config, [], held_out, None, False) == (
        "the perplexity of the model itself is not finite: load the model with dtype bfloat16 or float32."
    )


@pytest.mark.slow
def test_a_window_too_short_for_the_timed_prompt(pruner, rows, monkeypatch):
    monkeypatch.setattr(pruner.model.config.text_config, "max_position_embeddings", 70)
    train = [rows["train"][i] for i in range(4)]
    made = search(pruner, PruningConfig(ratio=0.5, importance="magnitude_l2"), [], train)
    assert all((one.prefill_speedup, one.decode_speedup) == (None, None) for one in made.tried)
