"""`--quantization`: a model held in a few bits is scored, and the plan carried out on the whole one."""

import json

import torch
from safetensors.torch import load_file


def test_scored_in_few_bits_pruned_whole(command, llava, rows, cwd):
    words = ("--importance", "taylor_group", "--ratio", "0.3", "--dataset", rows, "--num-samples", "4")
    done = command("--model", llava, "plan", *words, "--dry-run", "--quantization", "4bit")
    assert done.code == 0, done.err
    plan = json.loads((cwd / "plan" / "pruning_plan.json").read_text())
    done = command("--model", llava, "out", "--plan", "plan", "--repair", "auto")
    assert done.code == 0, done.err
    carried_out = json.loads((cwd / "out" / "pruning_plan.json").read_text())
    assert carried_out["removed_channels"] == plan["removed_channels"]
    used, found = (load_file(cwd / name / "pruning_scores.safetensors") for name in ("out", "plan"))
    assert used.keys() == found.keys()
    assert all(torch.equal(used[kind], scores) for kind, scores in found.items())


def test_it_cannot_be_pruned_so(refused, llava):
    assert refused("--model", llava, "out", "--quantization", "4bit") == (
        "--quantization holds the model to be scored only: add --dry-run, and carry the plan out with --plan."
    )


def test_sizes_alone_need_no_bits(refused, llava):
    told = refused("--model", llava, "--dry-run", "--quantization", "8bit")
    assert told == ("--dry-run without a --dataset shows sizes alone: leave --quantization out, or name a --dataset.")
