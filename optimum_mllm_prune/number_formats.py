"""In which number format weights are held while they are worked on, and in which they are saved."""

from typing import Any

import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedConfig, PreTrainedModel

from .backbone import model_class_of
from .backbone.skeleton import count_parameters, skeleton
from .backbone.text_config import text_config
from .loading import first_device, load_model


# Of the free memory that weights in float32 may take where 16 bits would do.
ROOM = 0.5


def saved_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The number format that a checkpoint's config names; float32 where it names none."""
    named = config.dtype or text_config(config).dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def working_dtype(config: PreTrainedConfig, device: str | None, device_map: Any) -> str | torch.dtype:
    """The number format to compute in where none is asked for: as saved, or float32 on a CPU slow with 16 bits.

    Without instructions for them, products of 16-bit matrices take many times as long as in float32 (7 to 50 times,
    measured on a CPU with AVX2 alone). Weights in float32 must take no more than half of the free memory, and the
    model must not hold some of its weights in float32 by itself, since these would be rounded when all are saved.

    Args:
        config: of the checkpoint.
        device: where the whole model goes; None is the first GPU, else the CPU.
        device_map: how it is spread instead.

    Returns:
        "auto" for as it is saved.
    """
    saved = saved_dtype(config)
    on_cpu = device_map is None and torch.device(device or first_device()).type == "cpu"
    if not on_cpu or not _is_slow(saved):
        return "auto"
    empty = skeleton(model_class_of(config), config)
    mixed = empty._keep_in_fp32_modules_strict or (saved == torch.float16 and empty._keep_in_fp32_modules)
    fits = count_parameters(empty) * torch.float32.itemsize <= ROOM * get_max_memory()["cpu"]
    return torch.float32 if fits and not mixed else "auto"


def load_to_work_on(
    model_id: str, config: PreTrainedConfig, dtype: str | torch.dtype, device: str | None, device_map: Any, **hub: Any
) -> tuple[PreTrainedModel, torch.dtype | None]:
    """A model in the format to compute in, and the format to save in where that is another one; see `load_model`."""
    working = working_dtype(config, device, device_map) if dtype == "auto" else dtype
    model = load_model(model_id, config, working, device, device_map, **hub)
    return model, None if working == dtype else saved_dtype(config)


def as_saved(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model with all that is saved of it in the number format of the checkpoint; None leaves it as it is."""
    if dtype is None:
        return model
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    return model


def _is_slow(dtype: torch.dtype) -> bool:
    """Whether the CPU has no instructions for products in a format of 16 bits."""
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported()
