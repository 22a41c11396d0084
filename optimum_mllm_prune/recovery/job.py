"""What is to be recovered, from what, and where to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RecoveryJob:
    """What is to be recovered, from what, and where to.

    Attributes:
        model: folder or Hub id of the pruned checkpoint; must hold its plan.
        output: folder of the result.
        dataset: rows to train on: a folder, file or Hub id.
        teacher: the unpruned model; None takes the one that the plan names.
        dataset_split: split of the rows.
        eval_dataset: rows on which the loss is evaluated; None for none.
        eval_split: their split.
        teacher_cache: folder of a cache, which is completed first; None keeps the teacher in memory.
        top_k: logits of the likeliest so many tokens to cache; None takes what is there, or 64.
        dtype: number format to train in; "auto": as saved under mixed precision, else float32.
        teacher_dtype: number format of the teacher; "auto" as saved.
        teacher_quantization: "8bit" or "4bit" to hold the teacher in so many bits; None as its format is.
        device_map: how to spread student and teacher over devices.
        overwrite: replace an output that exists.
        keep_adapter: also keep the adapter of "lora" in the output, in the folder `adapter`.
        command: the command line, to be written down.
        hub: `revision`, `token`, `cache_dir` of the pruned model.
        teacher_revision: of the teacher; None takes the one that the plan names.
    """

    model: str
    output: Path
    dataset: str
    teacher: str | None = None
    dataset_split: str | None = None
    eval_dataset: str | None = None
    eval_split: str | None = None
    teacher_cache: str | None = None
    top_k: int | None = None
    dtype: str = "auto"
    teacher_dtype: str = "auto"
    teacher_quantization: str | None = None
    device_map: Any = None
    overwrite: bool = False
    keep_adapter: bool = False
    command: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    teacher_revision: str | None = None
