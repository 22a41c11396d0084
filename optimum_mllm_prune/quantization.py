"""Models whose linear maps bitsandbytes holds in a few bits, to be looked at only."""

from typing import Any

from optimum.utils import logging
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils import is_bitsandbytes_available

from .backbone import model_class_of
from .backbone.skeleton import skeleton
from .errors import UserInputError


logger = logging.get_logger("optimum.mllm_prune.quantization")

# So many neighbouring weights share a scale in 4 bits.
BLOCK = 64


def quantized(quantization: str, config: PreTrainedConfig, device_map: Any) -> BitsAndBytesConfig:
    """How transformers is to load a model.

    Args:
        quantization: "8bit" or "4bit".
        config: of the model.
        device_map: where it goes, as in `from_pretrained`.

    Raises:
        UserInputError: another number of bits, or bitsandbytes is not installed.
    """
    if quantization not in ("8bit", "4bit"):
        raise UserInputError(f"unknown quantization '{quantization}': use 8bit or 4bit.")
    if not is_bitsandbytes_available():
        raise UserInputError(
            f"a model in {quantization} needs bitsandbytes, which is not installed: "
            "pip install 'optimum-mllm-prune[quantized]'."
        )
    on_cpu = isinstance(device_map, dict) and "cpu" in map(str, device_map.values())
    whole = _left_whole(config) if on_cpu and quantization == "4bit" else None
    return BitsAndBytesConfig(**{f"load_in_{quantization}": True}, llm_int8_skip_modules=whole)


def _left_whole(config: PreTrainedConfig) -> list[str] | None:
    """Maps that are not held in 4 bits on a CPU; None where they are those that transformers leaves whole by itself.

    Where a row is no whole number of blocks, bitsandbytes (0.49) gives weights the scale of another block on a CPU
    with AVX-512.
    """
    model = skeleton(model_class_of(config), config)
    maps = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    cut = [name for name, module in maps.items() if module.in_features % BLOCK]
    if not cut:
        return None
    logger.warning(
        f"{len(cut)} of {len(maps)} linear maps are not held in 4 bits, since on a CPU that takes inputs in multiples "
        f"of {BLOCK} (first: {cut[0]}, {maps[cut[0]].in_features})."
    )
    return [*get_keys_to_not_convert(model), *cut]


def computing_as_stored(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose 4-bit weights stay as they are.

    On a CPU with instructions for bfloat16 bitsandbytes (0.49) packs them anew in the first pass without gradients;
    through what it computes with them no gradient passes any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
