"""A model walked through layer by layer: what lies before the present layer is computed once and kept."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone.weights import in_memory
from ..memory import room_for_streams
from .batches import Batch
from .shelf import Shelf
from .stream import Form, form_of, formed, leaving, patched, unheard
from .tower import Tower


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
        way_back: keep what entered every layer, and not the present one alone.
    """

    def __init__(
        self, model: PreTrainedModel, layers: nn.ModuleList, batches: Sequence[Batch], way_back: bool = False
    ) -> None:
        self.model, self.layers, self.batches, self.way_back = model, layers, batches, way_back
        self.layer = 0
        self.shelf = Shelf(room_for_streams(model, layers[0]))
        self._tower = Tower(model, self.shelf)
        self._forms: list[Form] = [None] * len(layers)
        # Batches of which it is known already what the present layer gives.
        self._ahead: set[int] = set()
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
                for number in range(len(self.batches)):
                    self._pass_on(number, watched or {}, begin)
        self._ahead = set()
        self.layer += 1

    def go_back(self) -> None:
        """Go back to the layer before the present one, where the way back was kept."""
        self._drop(self.layer)
        self.layer -= 1

    def rewind(self) -> None:
        """Go back to the first layer, as to weights that have changed since; the vision tower is still known."""
        for layer in (self.layer, self.layer + 1):
            self._drop(layer)
        self.layer, self._ahead = 0, set()

    def state(self) -> dict[str, Tensor]:
        """Where the walk is and what the layer before the present one gave: a new walk of the same can go on there."""
        numbers = range(len(self.batches)) if self._needs_streams else ()
        return {"layer": torch.tensor(self.layer)} | {f"stream {number}": self.stream(number) for number in numbers}

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Be where another walk was; where layers cannot be skipped, that takes nothing but their number."""
        self.layer = int(state["layer"])
        if self._needs_streams:
            for number in range(len(self.batches)):
                self.shelf.put(_stream(self.layer, number), state[f"stream {number}"].to(self.model.device))

    @property
    def _needs_streams(self) -> bool:
        """Whether there is a layer left that starts from what the one before it gave."""
        return self.skips and 0 < self.layer < len(self.layers)

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
            self._keep(self.layer + 1, number, layer)
            self._ahead.add(number)
        return found

    def through(self, number: int, module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """What a module of the present layer is given and gives, and what the layer gives, with one of the batches."""
        found, layer = self._with_layer(number, [module])
        return *found[module], leaving(layer)

    def stream(self, number: int) -> Tensor:
        """What the layer before the present one gives, with one of the batches: (rows, tokens, hidden_size)."""
        if self.skips:
            return self.shelf.get(_stream(self.layer, number))
        return leaving(self._run(number, self.layers[self.layer - 1], output_of))

    def differentiable(self, number: int) -> tuple[Tensor | None, Tensor]:
        """What the layer before the present one gives, and what the present one makes of it, with its history.

        Args:
            number: of the batch.

        Returns:
            A leaf that gathers its gradient, None before the first layer; and the stream, both (rows, tokens,
            hidden_size).
        """
        leaf = self.stream(number).detach().requires_grad_() if self.layer else None
        return leaf, leaving(self._run(number, self.layers[self.layer], output_of, leaf))

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

    def _pass_on(self, number: int, watched: Mapping[nn.Module, Watch], begin: Callable[[Batch], None] | None) -> None:
        """Keep what the present layer gives, for the next one to start from."""
        if number not in self._ahead or watched or begin is not None:
            if begin is not None:
                begin(self.batches[number])
            with ExitStack() as stack:
                for module, tell in watched.items():
                    hook = module.register_forward_pre_hook(lambda _, args, tell=tell: tell(number, args[0]))
                    stack.callback(hook.remove)
                given = self._run(number, self.layers[self.layer], output_of)
            if self.skips:
                self._keep(self.layer + 1, number, given)
        if not self.way_back:
            self.shelf.drop(_stream(self.layer, number))

    def _keep(self, layer: int, number: int, given: Tensor | tuple) -> None:
        """What enters a layer, in the form in which the layer before it gives it."""
        self._forms[layer - 1] = form_of(given)
        self.shelf.put(_stream(layer, number), leaving(given))

    def _drop(self, layer: int) -> None:
        for number in range(len(self.batches)):
            self.shelf.drop(_stream(layer, number))

    def _run(self, number: int, module: nn.Module, look: Look, stream: Tensor | None = None) -> Any:
        found: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(self.beginning_skipped(number, stream))
            stack.callback(look(module, found).remove)
            try:
                self.model(**self.batches[number].inputs, use_cache=False)
            except Seen:
                return found[0] if found else None
        raise RuntimeError("the forward pass does not reach the module")

    @contextmanager
    def beginning_skipped(self, number: int, stream: Tensor | None = None) -> Iterator[None]:
        """Inside, what lies before the present layer gives what it gave with this batch; no cache may be used.

        Args:
            number: of the batch.
            stream: what the layer before the present one gives, if not what was kept of it.
        """
        with ExitStack() as stack:
            stack.enter_context(self._tower.once(number))
            if self.skips and self.layer:
                stream = self.stream(number) if stream is None else stream
                given = formed(stream, self._forms[self.layer - 1])
                for layer in self.layers[: self.layer]:
                    stack.enter_context(patched(layer, lambda *_, **__: given))
                    stack.enter_context(unheard(layer))
            yield

    def _can_skip(self) -> bool:
        """Whether the last layer gives the same with all others skipped."""
        self.skips, last = False, self.layers[-1]
        if len(self.layers) < 2 or not self.batches:
            return False
        self.layer = len(self.layers) - 1
        found, given = self._with_layer(0, [self.layers[-2]])
        before, whole = found[self.layers[-2]][1], leaving(given)
        self._forms = [form_of(before)] * len(self.layers)
        self._keep(self.layer, 0, before)
        self.skips = True
        short = leaving(self._run(0, last, output_of))
        self._drop(self.layer)
        self.layer = 0
        return bool((short - whole).abs().max() <= _ROUNDING * whole.abs().max())


def _stream(layer: int, number: int) -> str:
    return f"into layer {layer} {number}"


def output_of(module: nn.Module, found: list) -> Any:
    """A `Look` at what a module gives."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)
        raise Seen

    return module.register_forward_hook(hook)
