"""How much memory there is, and what of it goes to what."""

import psutil
import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedModel


# Of the memory that is there, what weights may take: the rest is for activations and sums.
SHARE = 0.8


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
