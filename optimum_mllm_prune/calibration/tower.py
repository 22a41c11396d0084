"""The vision tower of a model that sees the same batches again and again: it runs once a batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from ..backbone.finding import image_encoder
from .shelf import Shelf
from .stream import patched


class Tower:
    """What a model's vision tower gives, batch by batch.

    Args:
        model: with or without a vision tower.
        shelf: where its outputs are kept.
    """

    def __init__(self, model: PreTrainedModel, shelf: Shelf) -> None:
        self._encoder, self._shelf = image_encoder(model), shelf
        # The form of each output, and those of its leaves that are no tensors.
        self._outputs: dict[int, tuple[TreeSpec, list[Any]]] = {}

    @contextmanager
    def once(self, number: int) -> Iterator[None]:
        """Inside, the tower gives what it gave first with a batch of that number."""
        if self._encoder is None:
            yield
            return
        with patched(self._encoder, partial(self._give, number, self._encoder.forward)):
            yield

    def _give(self, number: int, forward: Callable, *args: Any, **inputs: Any) -> Any:
        if number not in self._outputs:
            leaves, form = tree_flatten(forward(*args, **inputs))
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    self._shelf.put(_name(number, place), leaf)
            self._outputs[number] = (form, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        form, leaves = self._outputs[number]
        names = [_name(number, place) for place in range(len(leaves))]
        kept = [self._shelf.get(n) if n in self._shelf else leaf for n, leaf in zip(names, leaves, strict=True)]
        # A new container every time: Qwen's models write into what their tower gives them.
        return tree_unflatten(kept, form)


def _name(number: int, place: int) -> str:
    return f"tower {number} {place}"
