"""`pruning_report.json`: what a run did, in figures."""

import json
import platform
import resource
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..version import __version__
from .verification import Verification


REPORT_NAME = "pruning_report.json"


@dataclass(frozen=True)
class PruningReport:
    """The figures of one run.

    Attributes:
        parameters: {"before", "after", "backbone_before", "backbone_after"}.
        ratio: {"requested", "achieved"}, shares of the backbone's parameters.
        size_bytes: bytes of the weights, {"before", "after"}.
        notes: how the sizes were chosen.
        verification: what the fresh process found.
        timings_seconds: wall-clock seconds by stage.
        floor_seconds: the least that some of these stages could have taken on this machine, see `floor_seconds`.
        peak_memory_bytes: {"cpu", "gpu"}: the largest resident set of this process, and the largest allocation of each
            GPU, summed.
        calibration: {"dataset", "split", "samples", "batch_size", "processes", "tokens" by modality, "seed",
            "importance"}; None where weights decided.
        environment: versions and machine, no names.
        repair: {"method", "rows", "tokens", "refitted", "left_alone", "error_before", "error_after",
            "answer_loss_before", "answer_loss_after", "notes"}, or of merged layers {"method", "merged"}; None where
            nothing was repaired.
    """

    parameters: dict[str, int]
    ratio: dict[str, float]
    size_bytes: dict[str, int]
    notes: list[str]
    verification: Verification
    timings_seconds: dict[str, float]
    floor_seconds: dict[str, float]
    peak_memory_bytes: dict[str, int]
    calibration: dict[str, Any] | None
    environment: dict[str, Any]
    repair: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Write `pruning_report.json`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / REPORT_NAME).write_text(text + "\n", encoding="utf-8")


def peak_memory() -> dict[str, int]:
    """Peaks of this process in bytes."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"cpu": cpu, "gpu": sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))}


def environment(model: PreTrainedModel) -> dict[str, Any]:
    """Versions of what took part, and the kind of machine."""
    packages = ("torch", "transformers", "optimum", "accelerate", "safetensors")
    return {
        "optimum_mllm_prune": __version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def weight_bytes(model: PreTrainedModel, dtype: torch.dtype | None = None) -> int:
    """Bytes of all distinct parameters, as they are or all in one number format."""
    return sum(p.numel() * (p.element_size() if dtype is None else dtype.itemsize) for p in model.parameters())
