"""The pruned model, built anew from the edited config and the sliced weights."""

import copy
from collections.abc import Collection

from accelerate import dispatch_model, init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone import Backbone, NotExpressibleError, refuse_offloaded, refuse_offloaded_outside
from ..backbone.skeleton import attention_implementations
from ..errors import UserInputError
from ..planning import PruningPlan
from ..planning.composed import parted
from .hidden import Narrowing
from .lazily import SlicedWeights, placed_lazily
from .slicing import all_cuts, offloaded, sliced


def pruned_model(
    model: PreTrainedModel, backbone: Backbone, plan: PruningPlan, keep_original: bool = False
) -> PreTrainedModel:
    """Build the model that a plan describes. `model` gives up its tensors on the way and cannot be used afterwards.

    A rebuilt model cannot have stale attributes (head counts, layer numbers, lists kept on a module): it is what a
    reload of its checkpoint will be. Its tensors are assigned, not copied.

    Args:
        model: the original, on one device or spread by a device map. Of weights on disk only what the pruned model has
            of them is read, and anew whenever it is asked for: the original must stay as it is on disk.
        backbone: of `model`.
        plan: made for `model`.
        keep_original: leave `model` as it is, for a look at what the plan would give: tensors that lose nothing are
            then those of both, and neither may be changed.

    Raises:
        UserInputError: the plan does not fit the model, or with a smaller hidden size the architecture computes
            something else, or weights are offloaded.
    """
    refuse_offloaded_outside(model, backbone.layers_prefix)
    if plan.removed_hidden:
        refuse_offloaded(model, "method 'hidden'")
    sizes = plan.sizes(backbone)
    if plan.removed_hidden and (plan.removed_layers or plan.removed_heads or plan.removed_channels):
        first, left, then = parted(plan, backbone)
        return pruned_model(pruned_model(model, backbone, first, keep_original), left, then)
    try:
        backbone.built(sizes)
        cuts = all_cuts(model, backbone, plan)
        narrowing = None if sizes.hidden is None else Narrowing(model, backbone.hidden)
    except NotExpressibleError as error:
        raise UserInputError(f"this architecture's config cannot express the plan: {error}") from error
    fresh = _empty_model(model, backbone, plan)
    device, device_map = model.device, getattr(model, "hf_device_map", None)
    if narrowing is not None:
        narrowing.foresee(model, fresh, plan)
    state = dict(sliced(model, backbone, plan, cuts, keep_original))
    lazily = offloaded(model, backbone, plan)
    _assign(fresh, state, lazily)
    new_map = _device_map(device_map, backbone, plan)
    if lazily:
        return placed_lazily(fresh, new_map, SlicedWeights(model, fresh, lazily, cuts))
    placed = _placed(fresh, device, new_map)
    if narrowing is not None:
        narrowing.finish(placed)
    return placed


def _empty_model(model: PreTrainedModel, backbone: Backbone, plan: PruningPlan) -> PreTrainedModel:
    """The pruned architecture with real buffers and no weights, set up like `model`."""
    config = backbone.config_for(plan.sizes(backbone))
    implementations = attention_implementations(model.config)
    with init_empty_weights(include_buffers=False):
        fresh = type(model)._from_config(config, dtype=model.dtype, attn_implementation=implementations)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh.eval()


def _assign(model: PreTrainedModel, state: dict[str, Tensor], lazily: Collection[str]) -> None:
    """Give a model its weights. Raises RuntimeError where some are missing, but for those that come later."""
    found = model.load_state_dict(state, strict=not lazily, assign=True)
    lacking = set(found.missing_keys) - set(lazily)
    if lacking or found.unexpected_keys:
        raise RuntimeError(f"the pruned model lacks {sorted(lacking)} and does not know {found.unexpected_keys}")
    model.tie_weights()


def _placed(model: PreTrainedModel, device: object, device_map: dict[str, object] | None) -> PreTrainedModel:
    if device_map and len(set(device_map.values())) > 1:
        return dispatch_model(model, device_map)
    _move_buffers(model, device)
    return model


def _move_buffers(model: nn.Module, device: object) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _device_map(
    device_map: dict[str, object] | None, backbone: Backbone, plan: PruningPlan
) -> dict[str, object] | None:
    """The same placement for the layers under their new numbers."""
    if device_map is None:
        return None
    renamed = {}
    for name, device in device_map.items():
        layer = backbone.layer_of(name + ".")
        new = name if layer is None else backbone.renamed(name + ".", plan.kept_layers)
        if new is not None:
            renamed[new.rstrip(".")] = device
    return renamed
