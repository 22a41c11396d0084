"""How much memory a model takes: once loaded, and at its peak while it generates."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import is_out_of_memory
from . import memory_probe
from .speed import Runner, time_run, unless_out_of_memory


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        kind: "gpu", what torch has allocated; or "process", the resident memory of a fresh process that does nothing
            else.
        empty: before the model is there: 0 on a GPU, Python and its libraries and the processor in a process.
        loaded: with the model, every weight read once (weights in a file are mapped, and take memory when read).
        peak: the most while generating, by batch size; None where memory did not suffice.
    """

    kind: str
    empty: int
    loaded: int
    peak: dict[int, int | None]


def gpu_memory(runner: Runner, batch_sizes: Sequence[int], new_tokens: int) -> Memory:
    """What a model takes on one GPU or several, what else lies there not counted."""
    tensors = [*runner.model.parameters(), *runner.model.buffers()]
    loaded = sum(tensor.nbytes for tensor in tensors if tensor.is_cuda)
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    peaks = {size: _gpu_peak(runner, size, new_tokens, devices) for size in batch_sizes}
    return Memory("gpu", 0, loaded, {size: None if peak is None else loaded + peak for size, peak in peaks.items()})


def process_memory(
    folder: Path, dtype: torch.dtype, with_images: bool, batch_sizes: Sequence[int], new_tokens: int, text_tokens: int
) -> Memory | None:
    """Load a folder on the CPU in a fresh process, and generate there.

    Args:
        folder: a saved model, and its processor where `with_images`.
        dtype: what its weights are loaded as.
        with_images: whether the prompt has an image.
        batch_sizes: rows generated together.
        new_tokens: of each row.
        text_tokens: as in `prompt_inputs`.

    Returns:
        None where the process ran out of memory while it loaded the model, or the system does not tell of a process's
        memory as Linux does.
    """
    if not memory_probe.STATUS.is_file():
        return None
    job = {
        "folder": str(folder.absolute()),
        "dtype": str(dtype).removeprefix("torch."),
        "with_images": with_images,
        "batch_sizes": list(batch_sizes),
        "new_tokens": new_tokens,
        "text_tokens": text_tokens,
        "threads": torch.get_num_threads(),
    }
    found = _run(job)
    if found is None:
        return None
    peaks = dict(zip(batch_sizes, found["peaks"], strict=True))
    return Memory("process", found["empty"], found["loaded"], peaks)


def _gpu_peak(runner: Runner, batch_size: int, new_tokens: int, devices: Sequence[int]) -> int | None:
    """The most that a run allocates beside the model."""
    before = {device: torch.cuda.memory_allocated(device) for device in devices}
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    if unless_out_of_memory(lambda: time_run(runner, batch_size, new_tokens)) is None:
        return None
    return sum(torch.cuda.max_memory_allocated(device) - before[device] for device in devices)


def _run(job: dict) -> dict | None:
    done = subprocess.run(
        [sys.executable, "-m", memory_probe.__name__, json.dumps(job)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        # Linux kills the process that asks for too much, which leaves it no last word.
        if done.returncode == -signal.SIGKILL or is_out_of_memory(reason):
            return None
        raise RuntimeError(f"the memory of '{Path(job['folder']).name}' cannot be measured: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
