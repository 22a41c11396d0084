"""How much memory there is, and what of it goes to what."""

import ctypes
from contextlib import suppress

import psutil
import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedModel


# Of the memory that is there, what weights may take: the rest is for activations and sums.
SHARE = 0.8

# Bytes from which on memory comes from the system by itself and goes back as soon as it is free. glibc raises its own
# limit to 32 MB, keeps all below that in its heap, and cannot give it back where something small lies behind it:
# 90 MB were left behind by every decoder layer of a 7B model.
OWN_PIECE = 1 << 20
OWN_PIECE_VARIABLE = "MALLOC_MMAP_THRESHOLD_"
# The parameter's number in glibc's malloc.h.
_M_MMAP_THRESHOLD = -3


def give_back_at_once() -> None:
    """From now on, memory of `OWN_PIECE` and more is given back when it is free. Other C libraries are left as they
    are."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, OWN_PIECE)


def free_bytes(device: str | torch.device) -> int:
    """What is free where `device` has its memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return get_max_memory()["cpu"]


def taken_bytes(device: str | torch.device) -> int:
    """What this process takes already before it has any weights: on the CPU the interpreter and its libraries."""
    return psutil.Process().memory_info().rss if torch.device(device).type == "cpu" else 0


def room_for_streams(model: PreTrainedModel, part: torch.nn.Module) -> float:
    """Bytes that may be kept of calibration rows from one look at a model to the next.

    Half of what is free where the whole model is in memory. Where some of it waits on disk, that was so because memory
    is short: then half of what weights leave, if those that are in memory take their whole share.

    Args:
        model: the model.
        part: of what is not in memory, what will be at once.
    """
    weights = [parameter.nbytes for parameter in model.parameters() if not parameter.is_meta]
    if all(not parameter.is_meta for parameter in model.parameters()):
        return free_bytes(model.device) / 2
    at_once = sum(parameter.nbytes for parameter in part.parameters() if parameter.is_meta)
    return (sum(weights) + at_once) * (1 - SHARE) / SHARE / 2
