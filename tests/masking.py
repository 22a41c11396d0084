"""The original model with the parts of a plan switched off: what a pruned model must equal. And plans made by hand."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from optimum_mllm_prune.backbone import TWIN_OF, Backbone, Group
from optimum_mllm_prune.backbone.text_config import text_config
from optimum_mllm_prune.planning import PruningPlan


@contextmanager
def masked(model, backbone, plan):
    """Inside, `model` runs with removed layers skipped and removed units zeroed where they are read.

    Of the residual stream, norms look at the dimensions that stay alone and give zeros for the others.
    """
    with ExitStack() as stack:
        layers = model.get_submodule(backbone.layers_prefix)
        for index in plan.removed_layers:
            stack.callback(layers[index].register_forward_hook(_skip, with_kwargs=True).remove)
        for kind, removed in (("heads", plan.removed_heads), ("channels", plan.removed_channels)):
            if not removed:
                continue
            for site in getattr(backbone, kind).sites:
                reader = model.get_submodule(site.reader_module)
                hook = _zero(removed[site.prefix], site.reader.units)
                stack.callback(reader.register_forward_pre_hook(hook).remove)
        if plan.removed_hidden:
            for module, hook in _narrow_norms(model, plan):
                stack.callback(module.register_forward_hook(hook).remove)
            for site in backbone.hidden.projector.sites if backbone.hidden.projector else ():
                reader = model.get_submodule(site.reader_module)
                hook = _zero(plan.removed_projector[site.prefix], site.reader.units)
                stack.callback(reader.register_forward_pre_hook(hook).remove)
        yield model


def plan_removing(
    backbone: Backbone,
    layers: list[int] | None = None,
    heads: int | None = None,
    channels: int | None = None,
    twin: bool = False,
    seed: int = 0,
    hidden: int | None = None,
) -> PruningPlan:
    """A plan that removes these layers, or leaves so many heads and channels, other ones in every layer, or of the
    hidden size."""
    projector = backbone.hidden.projector if hidden else None
    return PruningPlan(
        method="layer" if layers else "hidden" if hidden else "width",
        importance="random",
        model={"fingerprint": backbone.fingerprint, "model_type": backbone.config.model_type},
        num_layers=backbone.num_layers,
        removed_layers=layers or [],
        head_unit="query" if heads and backbone.heads.unit == "query head" else "group",
        removed_heads=_removed(backbone.heads, heads, seed) if heads else {},
        removed_channels=_removed(backbone.channels, channels, seed + 1) if channels else {},
        twin=TWIN_OF[text_config(backbone.config).model_type] if twin else None,
        config_changes={},
        parameters={"before": backbone.parameters},
        ratio={},
        removed_hidden=_some(backbone.hidden.size, hidden, seed) if hidden else [],
        removed_projector=_removed(projector, hidden, seed + 1) if projector else {},
        norm_factors={name: 0.8 + 0.1 * (i % 5) for i, name in enumerate(backbone.hidden.norms)} if hidden else {},
    )


def _some(units: int, kept: int, seed: int) -> list[int]:
    return sorted(torch.randperm(units, generator=torch.Generator().manual_seed(seed))[kept:].tolist())


def _narrow_norms(model, plan):
    """Every norm of the decoder over the residual stream, and a hook that makes its class look at what stays alone."""
    size = text_config(model.config).hidden_size
    kept = torch.tensor([i for i in range(size) if i not in plan.removed_hidden])
    inside = set(model.get_decoder().modules())
    for name, module in model.named_modules():
        shapes = {tuple(p.shape) for p in module.parameters()}
        if module in inside and shapes == {(size,)} and not list(module.children()):
            yield module, _normed(module, kept, plan.norm_factors.get(name, 1.0))


def _normed(module: nn.Module, kept: torch.Tensor, factor: float):
    narrow = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        setattr(narrow, name, nn.Parameter(parameter.detach()[kept]))
    if isinstance(narrow, nn.LayerNorm):
        narrow.normalized_shape = (len(kept),)

    def hook(_, args, output):
        whole = torch.zeros_like(output)
        bias = getattr(narrow, "bias", None)
        bias = 0 if bias is None else bias
        whole[..., kept] = factor * (narrow(args[0][..., kept]) - bias) + bias
        return whole

    return hook


def _removed(group: Group, kept: int, seed: int) -> dict[str, list[int]]:
    """Random units, as many from every set; the next site loses the next ones of the same random order."""
    size = group.units // group.stride
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    removed = {}
    for turn, site in enumerate(group.sites):
        chosen = [
            number * size + unit
            for number in range(group.stride)
            for unit in order.roll(turn + number)[: (group.units - kept) // group.stride].tolist()
        ]
        removed[site.prefix] = sorted(chosen)
    return removed


def _skip(module: nn.Module, args, kwargs, output):
    entering = args[0] if args else kwargs["hidden_states"]
    return entering if isinstance(output, torch.Tensor) else (entering, *output[1:])


def _zero(units, total):
    def hook(module: nn.Module, args):
        states = args[0].unflatten(-1, (total, -1)).clone()
        states[..., units, :] = 0
        return (states.flatten(-2), *args[1:])

    return hook
