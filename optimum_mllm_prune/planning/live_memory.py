"""How many bytes are alive at once while a model runs on the meta device: its shapes are real, its memory is not."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """While active, counts the bytes of the storages that operations make on the meta device.

    A view shares its storage and counts nothing; a storage counts until the last tensor of it is gone.

    Args:
        model: its weights are there already and never count.

    Attributes:
        live: bytes alive now.
        peak: most bytes that were alive at once.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        weights = [*model.parameters(), *model.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in weights}

    def __torch_dispatch__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count what is new in its result."""
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._forget, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


# As far as this version of torch has them.
_GROUPED = [
    getattr(home, name)
    for home, name in ((nn.functional, "grouped_mm"), (torch, "_grouped_mm"))
    if hasattr(home, name)
]


class FusedKernels(TorchFunctionMode):
    """While active, attention and the experts' grouped products take the memory of their results alone.

    That is what fused kernels do. On the meta device attention would otherwise make every score, and the grouped
    product would take no other number format than bfloat16.
    """

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """An empty result of the right shape in place of these two; anything else as it is."""
        if function is nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if function in _GROUPED:
            rows, experts = args[:2]
            return rows.new_empty(*rows.shape[:-1], experts.shape[-1])
        return function(*args, **(kwargs or {}))
