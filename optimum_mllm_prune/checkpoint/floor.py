"""The least time that the stages of a run could have taken: their work, at the rates of the machine it ran on."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..backbone import Backbone
from ..errors import is_out_of_memory
from ..importance.registry import METRICS


_SAMPLE_BYTES = 8_192_000
_TRIES = 3
# Sides of the matrices that are multiplied, from the first on doubled until a product takes so many seconds.
_SIDES = (256, 512, 1024, 2048, 4096, 8192)
_LONG_ENOUGH = 0.01


def product_rate(model: PreTrainedModel) -> dict[str, float]:
    """{"operations_per_second"} of a product of two matrices where the model is and in its number format, at best:
    2 m k n of them for (m, k) by (k, n). Matrices are as large as it takes to keep the device busy for a while, or as
    there is memory for."""
    rate = 0.0
    for side in _SIDES:
        try:
            seconds = min(_seconds_of_product(side, model.device, model.dtype) for _ in range(_TRIES))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not rate:
                raise
            break
        rate = max(rate, 2 * side**3 / seconds)
        if seconds > _LONG_ENOUGH:
            break
    return {"operations_per_second": rate}


def _seconds_of_product(side: int, device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.full((side, side), 0.5, device=device, dtype=dtype)
    # Reading a number waits for the device.
    matrix[0, 0].item()
    start = time.perf_counter()
    torch.mm(matrix, matrix)[0, 0].item()
    return time.perf_counter() - start


def disk_rates(folder: Path) -> dict[str, float]:
    """{"bytes_read_per_second", "bytes_written_per_second"} of a file in `folder`, which is removed again.

    It is read from the system's cache into memory that is there, and counts as written when the system has taken it;
    the best of three.
    """
    sample, content = folder / ".rate", bytearray(os.urandom(_SAMPLE_BYTES // 64) * 64)
    reading, writing = [], []
    try:
        for _ in range(_TRIES):
            start = time.perf_counter()
            sample.write_bytes(content)
            written = time.perf_counter()
            with sample.open("rb", buffering=0) as file:
                file.readinto(content)
            reading.append(time.perf_counter() - written)
            writing.append(written - start)
    finally:
        sample.unlink(missing_ok=True)
    return {
        "bytes_read_per_second": _SAMPLE_BYTES / min(reading),
        "bytes_written_per_second": _SAMPLE_BYTES / min(writing),
    }


def floor_seconds(
    rates: Mapping[str, float],
    backbone: Backbone,
    parameters: Mapping[str, int],
    size_bytes: Mapping[str, int],
    calibration: Mapping[str, Any] | None,
    repair: Mapping[str, Any] | None,
) -> dict[str, float]:
    """Seconds by stage: all weights read once, every calibration token forward (and backward) once, what is left
    written once and, to verify it, read once.

    A token takes 2 operations for each weight of the decoder layers' matrices forward, and as many backward, where
    gradients of the weights would be as many again; attention, norms, head and vision tower are left out, and so are
    experts, of which it is not known how many see a token.

    Args:
        rates: what `product_rate` and `disk_rates` found.
        backbone: of the original.
        parameters: as in the report.
        size_bytes: as in the report.
        calibration: as in the report; None where rows were not looked at.
        repair: as in the report; its rows go through the original and through the pruned model.
    """
    inside = f"{backbone.layers_prefix}."
    matrices = [s for name, s in backbone.shapes.items() if name.startswith(inside) and len(s) == 2]
    forward = 2 * sum(math.prod(shape) for shape in matrices) / rates["operations_per_second"]
    floor = {"load": size_bytes["before"] / rates["bytes_read_per_second"]}
    if calibration is not None:
        tokens = sum(calibration["tokens"].values()) / calibration["processes"]
        floor["calibration"] = forward * tokens * _passes(calibration["importance"])
    if repair is not None and "tokens" in repair:
        both = 1 + parameters["backbone_after"] / parameters["backbone_before"]
        floor["repair"] = forward * repair["tokens"] * both
    floor["saving"] = size_bytes["after"] / rates["bytes_written_per_second"]
    floor["verification"] = size_bytes["after"] / rates["bytes_read_per_second"]
    return floor


def _passes(importance: str) -> int:
    """Forward alone, or backward too."""
    return 2 if "backward" in {metric.needs for metric in METRICS[importance].values()} else 1
