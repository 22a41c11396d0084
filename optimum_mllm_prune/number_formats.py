"""In which number format weights are held while they are worked on, and in which they are saved."""

from contextlib import suppress
from typing import Any

import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedConfig, PreTrainedModel

from .backbone import model_class_of
from .backbone.skeleton import count_parameters, skeleton
from .backbone.text_config import text_config
from .errors import UserInputError
from .loading import check_device, first_device, load_model
from .placement import layers_on_disk
from .planning.byte_sizes import parse_size
from .planning.footprint import weight_bytes


# Of the free memory that weights in float32 may take where 16 bits would do.
ROOM = 0.5


def saved_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The number format that a checkpoint's config names; float32 where it names none."""
    return _named(config.dtype or text_config(config).dtype or torch.float32)


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
    if device_map is not None or not _is_slow_on(device or first_device(), config):
        return "auto"
    needed = weight_bytes(count_parameters(skeleton(model_class_of(config), config)), torch.float32)
    return torch.float32 if needed <= ROOM * get_max_memory()["cpu"] else "auto"


def load_to_work_on(
    model_id: str,
    config: PreTrainedConfig,
    dtype: str | torch.dtype,
    device: str | None,
    device_map: Any,
    max_memory: int | str | None,
    quantization: str | None = None,
    **hub: Any,
) -> tuple[PreTrainedModel, torch.dtype | None]:
    """A model in the format to compute in, and the format to save in where that is another one; see `load_model`.

    Args:
        model_id: Hub id or local folder.
        config: its config.
        dtype: number format to compute and to save in; "auto" is for the best.
        device: where the whole model goes, or what of it is in memory.
        device_map: how it is spread instead.
        max_memory: bytes, or a size such as "6GB", that may be taken; where weights take more, decoder layers stay on
            disk until they run.
        quantization: "8bit" or "4bit" to look at it only, as in `load_model`.
        hub: as for `load_model`.

    Raises:
        UserInputError: max_memory is given together with device_map or quantization, the memory is too little, or as
            in `load_model`.
    """
    check_device(device)
    max_memory = parse_size(max_memory) if isinstance(max_memory, str) else max_memory
    if device_map is not None and max_memory is not None:
        raise UserInputError("device_map and max_memory both say what is in memory: give one of them.")
    if quantization is not None and max_memory is not None:
        raise UserInputError("a quantized model is whole in memory: leave max_memory or quantization out.")
    working = working_dtype(config, device, device_map) if dtype == "auto" else dtype
    if device_map is None and quantization is None:
        working, device_map = _placed(config, max_memory, working, dtype == "auto", device or first_device())
        device = device if device_map is None else None
    model = load_model(model_id, config, working, device, device_map, quantization, **hub)
    return model, None if working == dtype else saved_dtype(config)


def _placed(
    config: PreTrainedConfig, max_memory: int | None, working: str | torch.dtype, free_choice: bool, device: str
) -> tuple[str | torch.dtype, dict[str, str] | None]:
    """The format to compute in, and which layers stay on disk; None where the whole model fits, be it in 16 bits."""
    formats = list(dict.fromkeys([working, "auto"])) if free_choice else [working]
    for tried in formats[:-1]:
        with suppress(UserInputError):
            if layers_on_disk(config, max_memory, _format(tried, config), device) is None:
                return tried, None
    found = layers_on_disk(config, max_memory, _format(formats[-1], config), device)
    if found is not None and free_choice and _is_slow_on(device, config):
        # One layer at a time may well be in float32.
        with suppress(UserInputError):
            return torch.float32, layers_on_disk(config, max_memory, torch.float32, device)
    return formats[-1], found


def rounded(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model with the values that it will be saved with, held as before; None changes nothing."""
    for tensor in model.state_dict(keep_vars=True).values() if dtype else ():
        if tensor.is_floating_point():
            tensor.data.copy_(tensor.data.to(dtype))
    return model


def as_saved(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model with all that is saved of it in the number format of the checkpoint; None leaves it as it is."""
    if dtype is None:
        return model
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    return model


def _format(named: str | torch.dtype, config: PreTrainedConfig) -> torch.dtype:
    return saved_dtype(config) if named == "auto" else _named(named)


def _named(dtype: str | torch.dtype) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _is_slow_on(device: str, config: PreTrainedConfig) -> bool:
    """Whether a model computes faster in float32 than as it is saved, and can be saved so again."""
    saved = saved_dtype(config)
    if torch.device(device).type != "cpu" or not _is_slow(saved):
        return False
    empty = skeleton(model_class_of(config), config)
    mixed = empty._keep_in_fp32_modules_strict or (saved == torch.float16 and empty._keep_in_fp32_modules)
    return not mixed


def _is_slow(dtype: torch.dtype) -> bool:
    """Whether the CPU has no instructions for products in a format of 16 bits; where nobody can tell it has."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported()
