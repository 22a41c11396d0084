"""What a model must do at the least: operations of a prefill, bytes that one step of decoding reads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from .cache_size import CacheSize, cache_size
from .decoding import generate


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Cost:
    """What one sequence costs.

    Attributes:
        prompt_tokens: tokens of the prompt, those of its image included.
        text_tokens: those that stand for no image.
        prefill_flops: floating point operations of the prompt's pass up to the first token, see `prefill_flops`.
        decode_weight_bytes: bytes of the weights that a step of decoding reads, see `decode_weight_bytes`.
        cache: size of its key-value cache; None where it cannot be read.
    """

    prompt_tokens: int
    text_tokens: int
    prefill_flops: int
    decode_weight_bytes: int | None
    cache: CacheSize | None

    def decode_bytes(self, batch_size: int, new_tokens: int) -> float | None:
        """Bytes that a step of decoding reads, the mean over those that make all but the first of `new_tokens`."""
        if self.decode_weight_bytes is None or self.cache is None:
            return None
        contexts = range(self.prompt_tokens + 1, self.prompt_tokens + new_tokens)
        kept = sum(self.cache.bytes_at(context) for context in contexts) / len(contexts)
        return self.decode_weight_bytes + batch_size * kept


def cost_of(model: PreTrainedModel, inputs: Mapping[str, Tensor], text_tokens: int) -> Cost:
    """Find the cost by running the model on one row: no table of architectures is needed.

    Args:
        model: the model.
        inputs: one row, what forward takes.
        text_tokens: tokens of the row that stand for no image.
    """
    return Cost(
        prompt_tokens=inputs["input_ids"].shape[1],
        text_tokens=text_tokens,
        prefill_flops=prefill_flops(model, inputs),
        decode_weight_bytes=decode_weight_bytes(model, inputs),
        cache=cache_size(model, inputs),
    )


def prefill_flops(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> int:
    """Operations of matrix products, convolutions and attention up to the first token, vision tower included.

    A product of (m, k) by (k, n) counts 2 m k n (torch.utils.flop_counter). Attention counts every pair of tokens,
    masked or not, and nothing counts for norms, activations and softmax.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with _frozen(model), FlopCounterMode(display=False, custom_mapping={attention: _attention_flops}) as counter:
        generate(model, inputs, 1)
    return counter.get_total_flops()


def decode_weight_bytes(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> int | None:
    """Bytes of the weights of all modules that run in a step of decoding; of an embedding table one row, if no head.

    Returns:
        None where a module holds the weights of several experts in one tensor: which of them are read is not known.
    """
    with _modules_of_last_pass(model) as called:
        generate(model, inputs, 2)
    if any(_has_stacked(m) for m in called if not isinstance(m, _CONVOLUTIONS)):
        return None
    tables = {m.weight: m.weight[0].nbytes for m in called if isinstance(m, nn.Embedding)}
    used = {p for m in called if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    return sum(p.nbytes for p in used) + sum(row for table, row in tables.items() if table not in used)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """The CPU's fused attention, which torch's table does not have."""
    return sdpa_flop_count(query, key, value)


def _has_stacked(module: nn.Module) -> bool:
    """Whether a module multiplies with several matrices that lie in one parameter."""
    return any(p.ndim > 2 and p.shape[0] > 1 for p in module.parameters(recurse=False))


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no parameter asks for a gradient: torch's counter trips over one that is a module's input."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _modules_of_last_pass(model: PreTrainedModel) -> Iterator[set[nn.Module]]:
    """Inside, a set of the modules that have run since the model's forward was last entered."""
    called: set[nn.Module] = set()

    def enter(module: nn.Module, _: Any) -> None:
        if module is model:
            called.clear()
        called.add(module)

    hooks = [module.register_forward_pre_hook(enter) for module in model.modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
