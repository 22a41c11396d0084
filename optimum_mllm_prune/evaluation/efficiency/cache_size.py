"""How large the key-value cache is, read from the cache of a real prefill."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .decoding import generate


# How much longer the second of two looks at the cache is, in tokens.
_STEP = 4


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the cache of one sequence.

    Attributes:
        per_token: bytes a token, in layers that keep every token.
        windows: bytes a token in layers that keep only the last ones, by how many tokens these keep.
        constant: bytes that do not grow: states of linear attention, keys and values of an image.
    """

    per_token: int
    windows: dict[int, int]
    constant: int

    def bytes_at(self, tokens: int) -> int:
        """Bytes once `tokens` tokens have been read."""
        in_windows = sum(size * min(tokens, window) for window, size in self.windows.items())
        return self.per_token * tokens + in_windows + self.constant


def cache_size(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> CacheSize | None:
    """Read the cache after the prompt and again a few tokens later.

    Args:
        model: any that generates with a cache.
        inputs: one row.

    Returns:
        None where the model keeps no cache of transformers' layered kind, whose tensors could be read.
    """
    prompt_tokens = inputs["input_ids"].shape[1]
    # The last token that is made is not read by the model any more.
    first, second = (_layers(model, inputs, new_tokens) for new_tokens in (1, 1 + _STEP))
    if not first or len(first) != len(second):
        return None
    total, windows, constant = 0, {}, 0
    for before, after in zip(first, second, strict=True):
        if before.window is not None:
            windows[before.window] = windows.get(before.window, 0) + before.per_kept_token
            constant += before.other
        else:
            growth = (after.all - before.all) // _STEP
            total += growth
            constant += before.all - growth * prompt_tokens
    return CacheSize(total, windows, constant)


@dataclass(frozen=True)
class _Layer:
    """Bytes of one layer's cache: all of them; of one kept token; those beside keys and values."""

    all: int
    window: int | None
    per_kept_token: int
    other: int


def _layers(model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int) -> list[_Layer]:
    made = generate(model, inputs, new_tokens, return_dict_in_generate=True)
    return [_look_at(layer) for layer in getattr(made.past_key_values, "layers", [])]


def _look_at(layer: Any) -> _Layer:
    held = sum(tensor.nbytes for tensor in _tensors(vars(layer)))
    if not getattr(layer, "is_sliding", False):
        return _Layer(held, None, 0, 0)
    pair = layer.keys.nbytes + layer.values.nbytes
    # The token that is being read is the window's last: it is added when its turn comes.
    return _Layer(held, layer.sliding_window - 1, pair // layer.keys.shape[-2], held - pair)


def _tensors(values: Mapping[Any, Any]) -> list[Tensor]:
    """The tensors in a layer's attributes, and in dicts among them; no counters."""
    found = []
    for value in values.values():
        if isinstance(value, dict):
            found += _tensors(value)
        elif isinstance(value, Tensor) and value.ndim > 1:
            found.append(value)
    return found
