"""Runs in a fresh process: loads a model and generates, and prints what memory this takes (JSON).

    python -m optimum_mllm_prune.evaluation.efficiency.memory_probe JOB

JOB is what `memory.process_memory` writes.
"""

import json
import sys
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from ...calibration.processors import load_processor
from ...loading import load_config, load_model
from ...quiet import quiet
from .inputs import prompt_inputs
from .speed import Runner, time_run, unless_out_of_memory


STATUS = Path("/proc/self/status")
# Written to, it makes the peak of resident memory start anew (proc(5)).
_CLEAR = Path("/proc/self/clear_refs")


def main(job: str) -> None:
    """Measure what the job says and print {"empty", "loaded", "peaks"} in bytes; None for a peak out of memory."""
    asked = json.loads(job)
    torch.set_num_threads(asked["threads"])
    disable_progress_bar()
    with quiet():
        print(json.dumps(_measure(asked)))


def resident(key: str) -> int:
    """Resident memory of this process in bytes: now ("VmRSS") or at its peak ("VmHWM")."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _measure(asked: dict) -> dict:
    folder = asked["folder"]
    processor = load_processor(folder) if asked["with_images"] else None
    config = load_config(folder)
    empty = resident("VmRSS")
    model = load_model(folder, config, getattr(torch, asked["dtype"]), device="cpu")
    for parameter in model.parameters():
        parameter.sum()
    loaded = resident("VmRSS")
    runner = Runner(model, lambda rows: prompt_inputs(model, processor, asked["text_tokens"], rows))
    peaks = [_peak(runner, rows, asked["new_tokens"]) for rows in asked["batch_sizes"]]
    return {"empty": empty, "loaded": loaded, "peaks": peaks}


def _peak(runner: Runner, batch_size: int, new_tokens: int) -> int | None:
    _CLEAR.write_text("5")
    run = unless_out_of_memory(lambda: time_run(runner, batch_size, new_tokens))
    return None if run is None else resident("VmHWM")


if __name__ == "__main__":
    main(sys.argv[1])
