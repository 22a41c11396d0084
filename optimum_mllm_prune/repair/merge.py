"""Layers that went, merged into layers that stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbone import Backbone
from ..backbone.merging import absorbed, merged, weights_of
from ..planning import PruningPlan


@dataclass(frozen=True)
class Merge:
    """What was merged.

    Attributes:
        layers: original numbers: a layer that stays to those that it took up.
    """

    layers: Mapping[int, Sequence[int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {"method": "merge", "merged": {str(into): list(others) for into, others in self.layers.items()}}


def merge(original: PreTrainedModel, pruned: PreTrainedModel, backbone: Backbone, plan: PruningPlan) -> Merge:
    """Merge every layer that went into the nearest one before it that stays, in `pruned`, in place; no row is read.

    Source: Yang et al., LaCo (arXiv 2402.11187), see `backbone.merging.merged`.

    Args:
        original: the whole model.
        pruned: made of it by `plan`; tensors that both share are not changed but replaced.
        backbone: of the original.
        plan: what was removed; `PruningPlan.sizes` has refused layers that cannot be merged.
    """
    theirs = weights_of(original.get_submodule(backbone.layers_prefix))
    ours = pruned.get_submodule(backbone.layers_prefix)
    groups = absorbed(plan.removed_layers, plan.num_layers)
    for into, others in tqdm(groups.items(), desc="Merging", unit="layer"):
        layer = ours[plan.kept_layers.index(into)]
        for name, weight in merged(theirs, into, others):
            _assign(layer, name, weight)
    return Merge(groups)


def _assign(layer: nn.Module, name: str, weight: Tensor) -> None:
    old = layer.get_parameter(name)
    parent, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(weight.to(old.device), old.requires_grad)
    layer.get_submodule(parent).register_parameter(leaf, parameter)
