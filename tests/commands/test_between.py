"""`mllm-prune --steps --recover-between`: pruned, trained a little, pruned further; broken off and given again."""

import json

import pytest
import torch
from checkpoint import tiny_llava
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune import MLLMPruner, PruningPlan, pruner
from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.recovery import recover, result


WAY = ("--importance", "magnitude_l2", "--head-share", "0", "--ratio", "0.3", "--steps", "2", "--device", "cpu")
TRAINED = ("--recover", "projector", "--recover-between", "1")
SHORT = ("--recover-set", "max_steps=2", "loss=sft+kd", "per_device_train_batch_size=4", "learning_rate=1e-2")


@pytest.fixture
def unverified(unverified, monkeypatch):
    """Of recoveries as well."""
    monkeypatch.setattr(result, "verify", pruner.verify)


def texts(folder):
    return json.loads((folder / "pruning_report.json").read_text()), PruningPlan.load(folder)


@pytest.mark.usefixtures("unverified")
def test_two_steps(command, llava, rows, cwd, monkeypatch):
    trained = []
    own = recover._run
    monkeypatch.setattr(recover, "_run", lambda args, *rest: trained.append(args.max_steps) or own(args, *rest))
    words = ("--model", llava, "out", "--dataset", rows, "--repair-samples", "8", *WAY, *TRAINED, *SHORT)
    done = command(*words)
    assert done.code == 0, done.err
    assert trained == [1, 2]
    assert [path.name for path in cwd.iterdir()] == ["out"]
    report, plan = texts(cwd / "out")
    # Both steps are told as one, of the original.
    gone = {len(channels) for channels in plan.removed_channels.values()}
    assert plan.model["fingerprint"] == Backbone.of(tiny_llava.model()).fingerprint
    assert gone == {tiny_llava.CHANNELS - plan.config_changes["intermediate_size"]}
    assert plan.parameters["before"] == sum(p.numel() for p in tiny_llava.model().parameters())
    model = AutoModelForImageTextToText.from_pretrained(cwd / "out")
    assert plan.parameters["after"] == sum(p.numel() for p in model.parameters())
    assert abs(plan.ratio["achieved"] - 0.3) < 0.02 and plan.ratio["requested"] == 0.3
    assert plan.notes[-1] == "pruned in 2 steps, each trained for 1 optimiser steps but the last"
    assert plan.config["steps"] == 2
    assert report["recovery"]["steps"] == 2
    assert report["recovery"]["teacher"] == llava.name
    assert report["size_bytes"]["before"] > 1.1 * report["size_bytes"]["after"]
    # What trained between the steps is in the result: the projector is not the original's before the last training.
    assert not torch.equal(
        load_file(cwd / "out" / "model.safetensors")["multi_modal_projector.linear_1.weight"],
        load_file(llava / "model.safetensors")["multi_modal_projector.linear_1.weight"],
    )


def stopped_in_training(of):
    """Ctrl-C when that checkpoint is loaded to be trained."""
    own = recover._load_student

    def load(job, args):
        if job.model == of:
            raise KeyboardInterrupt
        return own(job, args)

    return recover, "_load_student", load


def stopped_in_step_two(_):
    """Ctrl-C when the second step is pruned."""
    own = MLLMPruner.prune

    def prune(made, plan, rows):
        if made.earlier:
            raise KeyboardInterrupt
        return own(made, plan, rows)

    return MLLMPruner, "prune", prune


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize(
    ("stop", "standing", "kept", "told"),
    [
        pytest.param(
            stopped_in_training, "out.step1.pruned", "nothing was kept", "Step 1 of 2\n", marks=pytest.mark.slow
        ),
        (stopped_in_step_two, "out.step1", None, "Step 1 of 2 is there already: out.step1."),
        pytest.param(
            stopped_in_training,
            "out.pruned",
            "the checkpoint 'out.pruned' is complete",
            "Pruned already, in out.pruned",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_broken_off_and_given_again(command, llava, cwd, rows, monkeypatch, stop, standing, kept, told):
    words = ("--model", llava, "out", "--recover-dataset", rows, *WAY, *TRAINED, *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(*stop(standing))
        done = command(*words)
    assert done.code == 130
    kept = kept or "'out.step1' is kept: the same command goes on from there"
    assert done.lines[-1].endswith(f"error: interrupted; {kept}")
    assert (cwd / standing / "model.safetensors").is_file()
    again = command(*words)
    assert again.code == 0, again.err
    assert told in again.out
    assert [path.name for path in cwd.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*WAY, *TRAINED[:2], "--recover-between", "0"), "--recover-between must be at least 1, got 0."),
        (
            (*WAY, "--recover-between", "5"),
            "--recover-between trains between steps and goes on from there: use it with --recover and two or more "
            "--steps, or leave it out.",
        ),
        (
            ("--importance", "magnitude_l2", "--device", "cpu", *TRAINED),
            "--recover-between trains between steps and goes on from there: use it with --recover and two or more "
            "--steps, or leave it out.",
        ),
    ],
)
def test_what_does_not_go_together(refused, llava, rows, words, line):
    flag = "--recover-dataset" if "--recover" in words else "--dataset"
    assert refused("--model", llava, "out", flag, rows, *words) == line
