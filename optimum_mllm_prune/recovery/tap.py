"""A model run up to its head: final hidden states, those of chosen layers, and the head as a function."""

import types
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone.text_config import text_value
from .head import Head, logit_transform


@dataclass
class Tapped:
    """What a forward pass has shown.

    Attributes:
        final: (rows, length, hidden), what the head would have read.
        layers: layer number to (rows, length, hidden), what that layer gave.
        head: states (tokens, hidden) to logits (tokens, vocabulary), as the model makes them.
    """

    final: Tensor
    layers: dict[int, Tensor]
    head: Head


Objective = Callable[[Tapped], Any]


class Tap:
    """Runs a model without making its logits.

    Args:
        model: the model itself, not wrapped by peft or accelerate.
        layers: its decoder layers.
        watched: numbers of the layers whose output is wanted.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, watched: Sequence[int] = ()) -> None:
        self.model = model
        self.layers = {number: layers[number] for number in watched}
        self._forward = model.forward
        self._before: Callable[..., Any] | None = None
        self._transform: Callable[[Tensor], Tensor] | None = None

    def install(self) -> None:
        """Give the model's forward another argument, `objective`: with it, forward returns what that says of `Tapped`.

        The losses are so computed inside the model's own forward, where wrappers such as FSDP have its weights whole.
        """

        def forward(model: PreTrainedModel, *args: Any, objective: Objective | None = None, **inputs: Any) -> Any:
            if objective is None:
                return self._forward(*args, **inputs)
            return objective(self(**inputs))

        # accelerate's hooks, of a model spread over devices, stand in the same place.
        self._before = self.model.__dict__.get("forward")
        self.model.forward = types.MethodType(forward, self.model)

    def remove(self) -> None:
        """Give the model back the forward that it had."""
        if self._before is None:
            self.model.__dict__.pop("forward", None)
        else:
            self.model.forward = self._before

    def __call__(self, **inputs: Any) -> Tapped:
        """Run the model. `inputs` as its forward takes them."""
        head = self.model.get_output_embeddings()
        seen: dict[str, Tensor] = {}
        layers: dict[int, Tensor] = {}

        def before_head(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen["final"] = args[0]
            # One position is enough to see what the model does to the head's output.
            return (args[0][:1, :1], *args[1:])

        def after_head(_: nn.Module, __: Any, output: Tensor) -> None:
            seen["raw"] = output

        with ExitStack() as stack:
            stack.callback(head.register_forward_pre_hook(before_head).remove)
            stack.callback(head.register_forward_hook(after_head).remove)
            for number, layer in self.layers.items():
                stack.callback(layer.register_forward_hook(_keep(layers, number)).remove)
            logits = self._forward(**inputs, use_cache=False).logits
        if self._transform is None:
            cap = text_value(self.model.config, "final_logit_softcapping")
            self._transform = logit_transform(seen["raw"][0], logits[0], cap)
        return Tapped(seen["final"], layers, Head(head, self._transform))


def _keep(layers: dict[int, Tensor], number: int) -> Callable[[nn.Module, Any, Tensor | tuple], None]:
    def after(_: nn.Module, __: Any, output: Tensor | tuple) -> None:
        layers[number] = output if isinstance(output, Tensor) else output[0]

    return after
