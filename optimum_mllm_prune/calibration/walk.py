"""A model walked through layer by layer: what lies before the present layer is computed once and kept."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone.finding import image_encoder
from ..backbone.weights import in_memory
from .batches import Batch
from .stream import Form, form_of, formed, leaving, patched, unheard


Look = Callable[[nn.Module, list], Any]
"""Puts a hook on a module that notes a tensor in a list and raises `Seen`; returns its handle."""

Watch = Callable[[int, Tensor], None]
"""Told the number of the batch and what a module is given."""

# Of the largest value: what a skipped beginning may change by rounding.
_ROUNDING = 1e-3


class Seen(Exception):
    """Ends a forward pass once what was looked for has been seen."""


class Walk:
    """Runs batches through a model from the present layer on.

    Decoder layers before it are skipped: they give what the last of them gave, and the vision tower gives what it gave
    at first. Where a later layer looks at more of earlier ones than their output, as with shared keys and values, that
    is noticed, and whole passes are made instead.

    Args:
        model: in eval mode.
        layers: its decoder layers.
        batches: on its device.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, batches: Sequence[Batch]) -> None:
        self.model, self.layers, self.batches = model, layers, batches
        self.layer = 0
        self._tower = image_encoder(model)
        self._features: list[Any] = [None] * len(batches)
        self._before: list[Any] = [None] * len(batches)
        # What the present layer gives, of batches that it is known of already.
        self._ahead: dict[int, Any] = {}
        self._form: Form = None
        self.skips = self._can_skip()

    def advance(
        self, watched: Mapping[nn.Module, Watch] | None = None, begin: Callable[[Batch], None] | None = None
    ) -> None:
        """Go on to the next layer; what the present one gives is kept from now on.

        Args:
            watched: modules that run on the way, and who is told of their inputs.
            begin: told of every batch before it runs.
        """
        if self.skips or watched or begin:
            # Offloaded weights are fetched once for all batches.
            with in_memory(self.layers[self.layer]):
                given = [self._given(number, watched or {}, begin) for number in range(len(self.batches))]
            self._before = given if self.skips else self._before
        self._ahead = {}
        self.layer += 1

    def rewind(self) -> None:
        """Go back to the first layer, as to weights that have changed since; the vision tower is still known."""
        self.layer, self._before, self._ahead = 0, [None] * len(self.batches), {}

    def state(self) -> dict[str, Tensor]:
        """Where the walk is and what the layer before the present one gave: a new walk of the same can go on there."""
        given = {f"stream {n}": leaving(output) for n, output in enumerate(self._before) if output is not None}
        return {"layer": torch.tensor(self.layer)} | given

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Be where another walk was; where layers cannot be skipped, that takes nothing but their number."""
        self.layer = int(state["layer"])
        if self.skips:
            streams = (state[f"stream {n}"].to(self.model.device) for n in range(len(self.batches)))
            self._before = [formed(stream, self._form) for stream in streams]

    def see(self, number: int, module: nn.Module, look: Look) -> Tensor:
        """What a hook sees at a module of the present layer, with one of the batches."""
        return self._run(number, module, look)

    def met(
        self, number: int, modules: Collection[nn.Module], on_the_way: bool = False
    ) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """What modules of the present layer are given and give, each where it runs first, in the order they run in.

        Args:
            number: of the batch.
            modules: those that do not run in the layer are left out.
            on_the_way: what the layer gives is kept, so that to advance takes no further pass; until then no weight
                may change.
        """
        found, layer = self._with_layer(number, modules, whole=on_the_way)
        if on_the_way and self.skips:
            self._ahead[number] = layer
        return found

    def through(self, number: int, module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """What a module of the present layer is given and gives, and what the layer gives, with one of the batches."""
        found, layer = self._with_layer(number, [module])
        return *found[module], leaving(layer)

    def stream(self, number: int) -> Tensor:
        """What the layer before the present one gives, with one of the batches: (rows, tokens, hidden_size)."""
        if self.skips:
            return leaving(self._before[number])
        return leaving(self._run(number, self.layers[self.layer - 1], output_of))

    def _with_layer(
        self, number: int, modules: Collection[nn.Module], whole: bool = True
    ) -> tuple[dict[nn.Module, tuple[Any, Any]], Any]:
        """What modules are given and give, on the way to what the present layer gives; if that is not needed, it is
        None where all modules were met before."""
        found: dict[nn.Module, tuple[Any, Any]] = {}

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.setdefault(module, (args[0] if args else None, output))
            if not whole and len(found) == len(modules):
                raise Seen

        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_hook(hook).remove)
            return found, self._run(number, self.layers[self.layer], output_of)

    def _given(self, number: int, watched: Mapping[nn.Module, Watch], begin: Callable[[Batch], None] | None) -> Any:
        """What the present layer gives, for the next one to start from."""
        if number in self._ahead and not watched and begin is None:
            return self._ahead.pop(number)
        if begin is not None:
            begin(self.batches[number])
        with ExitStack() as stack:
            for module, tell in watched.items():
                hook = module.register_forward_pre_hook(lambda _, args, tell=tell: tell(number, args[0]))
                stack.callback(hook.remove)
            return self._run(number, self.layers[self.layer], output_of)

    def _run(self, number: int, module: nn.Module, look: Look) -> Any:
        found: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(self.beginning_skipped(number))
            stack.callback(look(module, found).remove)
            try:
                self.model(**self.batches[number].inputs, use_cache=False)
            except Seen:
                return found[0] if found else None
        raise RuntimeError("the forward pass does not reach the module")

    @contextmanager
    def beginning_skipped(self, number: int) -> Iterator[None]:
        """Inside, what lies before the present layer gives what it gave with this batch; no cache may be used."""
        with ExitStack() as stack:
            if self._tower is not None:
                stack.enter_context(patched(self._tower, self._once(number, self._tower.forward)))
            for layer in self.layers[: self.layer] if self.skips else ():
                stack.enter_context(patched(layer, lambda *_, **__: self._before[number]))
                stack.enter_context(unheard(layer))
            yield

    def _once(self, number: int, forward: Callable) -> Callable:
        def tower(*args: Any, **inputs: Any) -> Any:
            if self._features[number] is None:
                self._features[number] = forward(*args, **inputs)
            # Qwen's models write into what their tower gives them.
            return copy.copy(self._features[number])

        return tower

    def _can_skip(self) -> bool:
        """Whether the last layer gives the same with all others skipped."""
        self.skips, last = False, self.layers[-1]
        if len(self.layers) < 2 or not self.batches:
            return False
        self.layer = len(self.layers) - 1
        found, given = self._with_layer(0, [self.layers[-2]])
        self._before[0] = found[self.layers[-2]][1]
        self._form = form_of(self._before[0])
        whole, self.skips = leaving(given), True
        short = leaving(self._run(0, last, output_of))
        self.layer, self._before[0] = 0, None
        return bool((short - whole).abs().max() <= _ROUNDING * whole.abs().max())


def output_of(module: nn.Module, found: list) -> Any:
    """A `Look` at what a module gives."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)
        raise Seen

    return module.register_forward_hook(hook)
