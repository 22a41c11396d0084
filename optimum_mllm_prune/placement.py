"""Where a model's weights go that is larger than memory: decoder layers and head wait on disk, the rest is loaded."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedConfig

from .backbone import Backbone, model_class_of, own_head
from .backbone.skeleton import count_parameters, skeleton
from .errors import UserInputError
from .memory import SHARE, free_bytes, taken_bytes
from .planning.byte_sizes import in_gigabytes
from .planning.footprint import weight_bytes


DISK = "disk"


def layers_on_disk(
    config: PreTrainedConfig, max_memory: int | None, dtype: torch.dtype, device: str
) -> dict[str, str] | None:
    """A device map with all decoder layers on disk, and the head if it is no other's; None where the whole model fits.

    Args:
        config: of the model.
        max_memory: bytes that this process may take, in the memory of `device`; None is what is free there.
        dtype: number format of the weights once they are loaded.
        device: where what is loaded goes, and each layer while it runs.

    Raises:
        UserInputError: not even one layer fits beside what must be loaded.
    """
    free = free_bytes(device) if max_memory is None else max_memory - taken_bytes(device)
    model = skeleton(model_class_of(config), config)
    if _bytes([model], dtype) <= SHARE * free:
        return None
    prefix = Backbone(model_class_of(config), config).layers_prefix
    layers = model.get_submodule(prefix)
    places = dict.fromkeys(_others(model, prefix), device)
    head = own_head(model)
    heads = {name for name, module in model.named_modules() if module is head}
    away = [f"{prefix}.{i}" for i in range(len(layers))] + [name for name in places if name in heads]
    parts = [model.get_submodule(name) for name in away]
    needed = _bytes([model], dtype) - _bytes(parts, dtype) + max(_bytes([part], dtype) for part in parts)
    if needed > SHARE * free:
        raise UserInputError(
            f"{in_gigabytes(max(free, 0))} of memory are too little: one decoder layer and all that stays take "
            f"{in_gigabytes(needed)}, and may take {SHARE:.0%}; allow {in_gigabytes(needed / SHARE - free)} more."
        )
    return places | dict.fromkeys(away, DISK)


def _others(model: nn.Module, prefix: str) -> Iterable[str]:
    """Names of the largest modules, and of parameters in between, that hold all that the layers do not."""
    path = prefix.split(".")
    for depth, following in enumerate(path):
        parent = ".".join(path[:depth])
        module = model.get_submodule(parent)
        names = [name for name, _ in module.named_children() if name != following]
        names += [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        yield from (f"{parent}.{name}".lstrip(".") for name in names)


def _bytes(modules: Iterable[nn.Module], dtype: torch.dtype) -> int:
    return weight_bytes(count_parameters(*modules), dtype)
