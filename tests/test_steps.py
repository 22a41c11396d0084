"""Plans made step by step: every step is what a plan of the model that the last one left would be."""

import copy
from functools import cache
from pathlib import Path

import pytest
import scenes
import torch

from optimum_mllm_prune import MLLMPruner, PruningConfig, UserInputError
from optimum_mllm_prune.calibration.row_forms import normalize_row


DIGITS = Path(__file__).parents[1] / "examples" / "digit_scenes" / "llava"


@cache
def rows():
    data = scenes.build(train=24, test=7, seed=21)["train"]
    return [normalize_row(data[i]) for i in range(24)]


def pruner():
    return MLLMPruner.from_pretrained(str(DIGITS), device="cpu", dtype="float32")


def test_two_steps_of_width_by_hand():
    wish = {"method": "width", "importance": "wanda", "head_share": 0.0, "repair_samples": 16}
    made = pruner()
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    plan = made.plan(PruningConfig(ratio=0.4, steps=2, **wish), rows())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())

    half = MLLMPruner(copy.deepcopy(made.model), made.processor)
    half.prune(PruningConfig(ratio=0.2, **wish), rows())
    rest = MLLMPruner(half.model, made.processor)
    second = rest.plan(PruningConfig(target_params=plan.parameters["after"], **wish), rows())
    assert second.parameters["after"] == plan.parameters["after"]
    (prefix, gone), *_ = second.removed_channels.items()
    first = pruner().plan(PruningConfig(ratio=0.2, **wish), rows()).removed_channels[prefix]
    left = [unit for unit in range(416) if unit not in set(first)]
    assert plan.removed_channels[prefix] == sorted([*first, *(left[unit] for unit in gone)])
    assert plan.notes[-1] == "chosen in 2 steps, each scored on what the last one left"
    assert plan.ratio["requested"] == 0.4
    assert abs(plan.ratio["achieved"] - 0.4) < 0.01

    small = made.prune(plan, rows())
    assert sum(p.numel() for p in small.parameters()) == plan.parameters["after"]


def test_steps_of_layers_keep_what_is_protected(tmp_path):
    made = pruner()
    config = PruningConfig(num_layers=3, steps=3, protected_layers=[5, 6], num_samples=8, repair="none")
    plan = made.plan(config, rows())
    assert len(plan.removed_layers) == 3 and not {5, 6} & set(plan.removed_layers)
    made.prune(plan)
    report = made.save_pretrained(tmp_path / "out")
    assert report.verification.max_abs_logit_difference == 0


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            {"num_layers": 2, "steps": 3},
            "steps 3 are more than the 2 layers that are to go: take fewer.",
        ),
        (
            {"method": "width", "importance": "wanda", "ratio": 0.01, "steps": 9},
            "step 1 of 9: ratio 0.0011 removes nothing: less than half a step of this architecture, ask for more.",
        ),
    ],
)
def test_steps_that_are_too_many(wish, message):
    with pytest.raises(UserInputError) as told:
        pruner().plan(PruningConfig(num_samples=4, **wish), rows())
    assert str(told.value) == message


def test_scores_of_one_step_are_refused():
    made = pruner()
    scores = made.score(PruningConfig(importance="magnitude_l2"))
    with pytest.raises(UserInputError) as told:
        made.plan(PruningConfig(importance="magnitude_l2", steps=2), scores=scores)
    assert str(told.value) == "every step is scored anew: leave the scores out, or take one step."


def test_mixed_goes_in_one_step():
    with pytest.raises(UserInputError) as told:
        PruningConfig(method="mixed", steps=2)
    assert str(told.value) == "steps go with method 'layer' or 'width': take one step, or one of these."
