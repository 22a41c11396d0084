"""Where the units lie inside fused projections, found by experiment.

Shapes cannot tell [q; k; v] from q, k, v interleaved by head. The model can: the gradient of one unit, taken at the
input of the linear map that reads it, is nonzero in exactly the rows that write that unit.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .probe import head_counts, head_dim
from .text_config import NotExpressibleError
from .units import Axis, Group, Segment, Site, layout_candidates
from .weights import in_memory


def with_layouts(group: Group, model: PreTrainedModel) -> Group:
    """The same group with the segments of every axis known.

    Args:
        group: as probed from shapes.
        model: the model with its weights; run on four text tokens, up to the first block with a fused projection.

    Raises:
        NotExpressibleError: no known layout explains the model's gradients.
    """
    known: dict[tuple[str, int], tuple[Segment, ...]] = {}
    sites = []
    for site in group.sites:
        for axis in site.writers:
            role = (_role(axis.tensor), axis.dim)
            if axis.segments is None and role not in known:
                known[role] = _found_by_gradient(model, site, axis, _parts(model.config, group, axis))
        located = (replace(a, segments=a.segments or known[_role(a.tensor), a.dim]) for a in site.writers)
        sites.append(replace(site, writers=tuple(located)))
    return group.with_sites(sites)


def _role(tensor: str) -> str:
    """The tensor's name without layer numbers, and without telling a weight from its bias."""
    return re.sub(r"\.\d+\.", ".N.", tensor).rpartition(".")[0]


def _parts(config: PreTrainedConfig, group: Group, axis: Axis) -> Sequence[int]:
    if group.kind != "heads":
        return ()
    (heads, groups), size = head_counts(config), head_dim(config)
    if axis.owned < axis.size:
        return (heads * size,)
    return (heads * size, groups * size, groups * size)


def _found_by_gradient(model: PreTrainedModel, site: Site, axis: Axis, parts: Sequence[int]) -> tuple[Segment, ...]:
    candidates = layout_candidates(axis, parts)
    if len(candidates) == 1:
        return candidates[0]
    for unit in dict.fromkeys((0, 1, axis.units - 1)):
        written = _rows_that_write(model, site, axis, unit)
        candidates = [c for c in candidates if _explains(c, axis, unit, written)]
    if len(candidates) != 1:
        raise NotExpressibleError(f"the layout of the fused projection {axis.tensor} is not one of the known ones")
    return candidates[0]


def _explains(segments: tuple[Segment, ...], axis: Axis, unit: int, written: Tensor) -> bool:
    expected = torch.zeros(axis.size, dtype=torch.bool)
    for segment in segments:
        start = segment.offset + unit * segment.block
        expected[start : start + segment.block] = True
    strangers = written & ~expected
    # A block without any gradient is not this unit's; single rows may be silent (a dead ReLU).
    silent = any(not written[s.offset + unit * s.block :][: s.block].any() for s in segments)
    return not strangers[: axis.owned].any() and not silent


def _rows_that_write(model: PreTrainedModel, site: Site, axis: Axis, unit: int) -> Tensor:
    """Bool tensor (axis.size,): the positions along `axis` with a gradient from one unit's columns."""
    captured: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        captured.append(args[0])
        raise _Captured

    with ExitStack() as stack:
        stack.enter_context(in_memory(model.get_submodule(axis.tensor.rpartition(".")[0])))
        weight = model.get_parameter(axis.tensor)
        stack.callback(weight.requires_grad_, weight.requires_grad)
        weight.requires_grad_(True)
        stack.callback(model.get_submodule(site.reader_module).register_forward_pre_hook(stop).remove)
        stack.enter_context(torch.enable_grad())
        with suppress(_Captured):
            model(input_ids=plain_tokens(model))
        if not captured:
            raise NotExpressibleError(f"{site.prefix} does not run on text, so its fused layout cannot be found")
        block = site.reader.size // site.reader.units
        columns = captured[0][..., unit * block : (unit + 1) * block]
        (gradient,) = torch.autograd.grad(columns.float().square().sum(), weight, allow_unused=True)
    if gradient is None:
        return torch.zeros(axis.size, dtype=torch.bool)
    return gradient.movedim(axis.dim, 0).reshape(axis.size, -1).ne(0).any(dim=1).cpu()


def plain_tokens(model: PreTrainedModel) -> Tensor:
    """Four token ids (1, 4), spread over the vocabulary, that stand for nothing special in the config.

    Through an embedding of zeros, such as the rows that pad a vocabulary, no gradient would flow.
    """
    special = {value for key, value in model.config.to_dict().items() if "token" in key and isinstance(value, int)}
    embeddings = model.get_input_embeddings().weight.detach()
    plain = [i for i in embeddings.norm(dim=1).nonzero().flatten().tolist() if i not in special]
    spread = [plain[len(plain) * part // 5] for part in (1, 2, 3, 4)] if plain else []
    if len(set(spread)) < 4:
        raise NotExpressibleError("fewer than four of its token embeddings are not zero, so no layout can be found")
    return torch.tensor([spread], device=embeddings.device)


class _Captured(Exception):
    """Ends a forward pass that has gone far enough."""
