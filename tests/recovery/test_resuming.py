"""Killed in the middle of an epoch and resumed: the weights of an undisturbed training, bit by bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recovery import tiny, train_tiny


SCRIPT = Path(train_tiny.__file__)
# Six steps an epoch: it dies in the second, one step after a checkpoint.
COMMON = {
    "max_steps": 12,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
    "logging_steps": 2,
}
JOBS = {
    "lora": {"arguments": {**COMMON, "train": "lora", "lora_dropout": 0.2, "loss": "sft+hidden"}},
    # Accumulated, with rows with and without images, which are drawn by our own sampler.
    "projector": {
        "arguments": {
            **COMMON,
            "train": "projector",
            "loss": "sft+kd",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "projector_learning_rate": 2e-3,
        },
        "mixed": True,
    },
}


def dies(job, file):
    file.write_text(json.dumps([job]))
    ended = subprocess.run([sys.executable, str(SCRIPT), str(file)], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(
    "train", [pytest.param(job, marks=pytest.mark.slow) if job != "lora" else job for job in JOBS]
)
def test_killed_and_resumed(tmp_path, train):
    job = JOBS[train]
    dies({**job, "folder": str(tmp_path / "killed"), "die_after": 9}, tmp_path / "jobs.json")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]
    whole = train_tiny.trainer_of({**job, "folder": str(tmp_path / "whole")})
    whole.train()
    resumed = train_tiny.trainer_of({**job, "folder": str(tmp_path / "killed")})
    resumed.train(resume_from_checkpoint=True)
    # The same losses, also in the log that spans the kill.
    for name in ("loss", "learning_rate", *(f"loss_{term}" for term in whole.recipe.weights)):
        assert tiny.logged(resumed, name) == tiny.logged(whole, name)
    expected, found = whole.plain_model().state_dict(), resumed.plain_model().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    start = tiny.student().state_dict()
    assert any(not torch.equal(tensor, start[name]) for name, tensor in found.items())
