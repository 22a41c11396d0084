"""The residual stream at a decoder layer, in whatever form the layer takes and gives it; layers that it passes by."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .batches import Batch


Form = int | None
"""What a layer gives: the entries of a tuple whose first is the stream, or None for the stream alone."""


def entering(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The stream among what a layer is called with."""
    return args[0] if args else kwargs["hidden_states"]


def leaving(output: Any) -> Tensor:
    """The stream in what a layer gives."""
    return output if isinstance(output, Tensor) else output[0]


def form_of(output: Any) -> Form:
    """The form of what a layer gives."""
    return None if isinstance(output, Tensor) else len(output)


def formed(stream: Tensor, form: Form) -> Tensor | tuple:
    """A stream in the form in which a layer gives it, with nothing beside it."""
    return stream if form is None else (stream, *[None] * (form - 1))


def forms_of(model: PreTrainedModel, layers: nn.ModuleList, batch: Batch) -> list[Form]:
    """What every layer gives, seen in one forward pass."""
    forms: list[Form] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        forms.append(form_of(output))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(see).remove)
        model(**batch.inputs, use_cache=False)
    return forms


@contextmanager
def passed_by(layers: nn.ModuleList, indexes: Iterable[int], forms: Sequence[Form]) -> Iterator[None]:
    """Inside, these layers compute nothing: what leaves them is what entered. No cache may be used."""
    with ExitStack() as stack:
        for index in indexes:
            stack.enter_context(patched(layers[index], partial(_unchanged, forms[index])))
        yield


@contextmanager
def patched(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Inside, a module's forward is another one; its hooks are called as before."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own


@contextmanager
def unheard(module: nn.Module) -> Iterator[None]:
    """Inside, nobody hears of a module's passes: its hooks are put aside, not those of modules below it."""
    hooks = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        module._forward_pre_hooks, module._forward_hooks = hooks


def _unchanged(form: Form, *args: Any, **kwargs: Any) -> Tensor | tuple:
    return formed(entering(args, kwargs), form)
