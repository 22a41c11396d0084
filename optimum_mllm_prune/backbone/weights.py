"""The weights of a model: in memory, or waiting on the CPU or on disk until a module runs (accelerate's hooks)."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from ..errors import UserInputError


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are not there until a pass fetches them: tensors of the meta device stand for them."""
    return any(parameter.is_meta for parameter in model.parameters())


def is_quantized(model: nn.Module) -> bool:
    """Whether its linear maps are held in a few bits, so that it can be looked at but not changed."""
    return getattr(model, "hf_quantizer", None) is not None


def refuse_quantized(model: PreTrainedModel) -> None:
    """Raise UserInputError where a model that is to be pruned is quantized."""
    if is_quantized(model):
        raise UserInputError(
            "a quantized model can be scored, and not pruned: save the plan, and carry it out on the model without a "
            "quantization."
        )


def refuse_offloaded(model: PreTrainedModel, what: str) -> None:
    """Raise UserInputError where some weights are offloaded, which `what` cannot do with."""
    if is_offloaded(model):
        raise UserInputError(
            f"{what} needs all weights in memory, and some are offloaded: load the whole model, on the CPU, on enough "
            "GPUs, or with a larger max_memory."
        )


def refuse_offloaded_outside(model: PreTrainedModel, layers: str) -> None:
    """Raise UserInputError where weights are offloaded that are not those of the decoder layers, named `layers`, or of
    the head alone."""
    head = own_head(model)
    allowed = set() if head is None else {id(parameter) for parameter in head.parameters()}
    offloaded = [name for name, p in model.named_parameters() if p.is_meta and id(p) not in allowed]
    others = [name for name in offloaded if not name.startswith(f"{layers}.")]
    if others:
        raise UserInputError(
            f"weights outside the decoder layers are offloaded (first: {others[0]}): load the model with a max_memory "
            "or a device, and without a device_map."
        )


def own_head(model: PreTrainedModel) -> nn.Module | None:
    """The output embeddings, if they share no weight with the token embeddings."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        return None
    theirs = {id(parameter) for parameter in embeddings.parameters()}
    return None if any(id(parameter) in theirs for parameter in head.parameters()) else head


def weight_of(model: PreTrainedModel, name: str) -> Tensor:
    """A weight without its history, fetched where it is offloaded; `name` as in the state dict."""
    tensor = model.get_parameter(name).detach()
    return load_offloaded_parameter(model, name) if tensor.is_meta else tensor


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """Inside, all weights below a module are there, and stay from one pass to the next."""
    fetched: list[tuple[nn.Module, AlignDevicesHook]] = []
    try:
        for part in module.modules():
            hook = getattr(part, "_hf_hook", None)
            if isinstance(hook, AlignDevicesHook) and hook.offload:
                hook.pre_forward(part)
                hook.offload = False
                fetched.append((part, hook))
        yield
    finally:
        for part, hook in fetched:
            hook.offload = True
            hook.post_forward(part, None)
