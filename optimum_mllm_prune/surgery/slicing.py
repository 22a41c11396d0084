"""Weights sliced by plan, one tensor at a time: each original is let go as soon as its slice exists."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbone import Axis, Backbone, Group, Hidden, with_layouts
from ..planning import PruningPlan


Cuts = dict[str, list[tuple[Axis, list[int]]]]


def cuts_of(plan: PruningPlan, groups: Sequence[Group]) -> Cuts:
    """Tensor name to the axes along which it loses units, with the units that stay."""
    cuts: Cuts = {}
    for group in groups:
        for site in group.sites:
            gone = set(plan.removed_units(group)[site.prefix])
            left = [unit for unit in range(group.units) if unit not in gone]
            for axis in site.axes:
                cuts.setdefault(axis.tensor, []).append((axis, left))
    return cuts


def hidden_cuts(plan: PruningPlan, hidden: Hidden) -> Cuts:
    """As `cuts_of`, of the residual stream and of what must be as wide."""
    cuts = cuts_of(plan, [hidden.projector] if hidden.projector else [])
    left = plan.kept_hidden(hidden.size)
    for axis in hidden.axes:
        cuts.setdefault(axis.tensor, []).append((axis, left))
    return cuts


def all_cuts(model: PreTrainedModel, backbone: Backbone, plan: PruningPlan) -> Cuts:
    """As `cuts_of`, of all that a plan removes; fused layouts are found by experiment.

    Raises:
        NotExpressibleError: no known layout explains a fused projection.
    """
    kinds = [kind for kind in ("heads", "channels") if getattr(plan, f"removed_{kind}")]
    cuts = cuts_of(plan, [with_layouts(getattr(backbone, kind), model) for kind in kinds])
    for tensor, more in (hidden_cuts(plan, backbone.hidden) if plan.removed_hidden else {}).items():
        cuts.setdefault(tensor, []).extend(more)
    return cuts


def sliced(
    model: nn.Module, backbone: Backbone, plan: PruningPlan, cuts: Cuts, keep: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the pruned model's state dict.

    Unless they are to be kept, the tensors are taken out of `model` one by one, so that the two models never stand in
    memory together; what is left of `model` cannot be used any more. Those that are offloaded stay where they are.
    """
    kept = plan.kept_layers
    for name in tqdm(list(model.state_dict()), desc="Pruning", unit="tensor", leave=False):
        tensor = _tensor(model, name, keep)
        renamed = backbone.renamed(name, kept)
        if renamed is not None and not tensor.is_meta:
            yield renamed, slice_of(tensor, cuts.get(name, []))


def offloaded(model: nn.Module, backbone: Backbone, plan: PruningPlan) -> dict[str, str]:
    """Names in the pruned model, of weights that are offloaded in `model`, to their names there."""
    names = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    renamed = {name: backbone.renamed(name, plan.kept_layers) for name in names}
    return {new: name for name, new in renamed.items() if new is not None}


def slice_of(tensor: Tensor, cuts: list[tuple[Axis, list[int]]]) -> Tensor:
    """What stays of a tensor; the tensor itself where nothing is cut."""
    for axis, left in cuts:
        tensor = tensor.index_select(axis.dim, axis.indices(left).to(tensor.device))
    return tensor


def _tensor(model: nn.Module, name: str, keep: bool) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    home = module._parameters if leaf in module._parameters else module._buffers
    tensor = home[leaf]
    if not keep and not tensor.is_meta:
        home[leaf] = None
    return tensor.detach()
