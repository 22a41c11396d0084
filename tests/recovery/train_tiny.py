"""Runs as a process of its own, alone or under `accelerate launch`: trains the tiny model, several times in turn.

    python train_tiny.py JOBS

JOBS is a JSON file of a list. A job has the `folder` of a training and its `arguments`; `mixed`: rows with and without
images; `die_after`: so many steps; `saved`: folder for the plain model, with the losses in `logged.json` beside it;
`chunk_elements`: so many logits a chunk; `wrapper`: part of the class name that the trained model must have.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback


sys.path.insert(0, str(Path(__file__).parents[1]))

from recovery import tiny

from optimum_mllm_prune.recovery import head


class Killed(TrainerCallback):
    """SIGKILL after a step: nothing can be written any more."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(job):
    given = {"plan": tiny.plan(), **job["arguments"]}
    if job.get("mixed"):
        given["train_dataset"] = tiny.mixed_rows()
    callbacks = [Killed(job["die_after"])] if job.get("die_after") else []
    return tiny.trainer(job["folder"], callbacks=callbacks, **given)


def run(job):
    head.CHUNK_ELEMENTS = job.get("chunk_elements", head.CHUNK_ELEMENTS)
    trainer = trainer_of(job)
    trainer.train()
    wrapped = type(trainer.model_wrapped).__name__
    assert job.get("wrapper", "") in wrapped, wrapped
    if job.get("saved"):
        trainer.save_model(job["saved"])
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        if trainer.args.should_save:
            (Path(job["saved"]) / "logged.json").write_text(json.dumps(logged))


def allow_fsdp_on_cpu():
    """accelerate keeps FSDP for accelerators and quietly takes DDP on a CPU; torch's FSDP2 itself runs there."""
    own = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **others):
        own(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def main(jobs):
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    for job in jobs:
        run(job)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
