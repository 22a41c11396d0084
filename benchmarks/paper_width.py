"""The paper's widthwise pruning: the ends of the decoder stay whole, so that its widths differ between layers.

Source: Huang et al. (arXiv 2507.20749, 2604.24380), section 3, and the settings of their runs. Units of coupled groups
are ranked within their layer by first-order Taylor |w g|, one shot; the layers at the ends lose nothing, the others
the same share each. No config can say such widths. What is measured is therefore the original with the removed units
zeroed where they are read, which computes what a model cut so would compute; parameters are counted as if it were cut.
The authors' code has no grouped-query attention: there whole key-value groups go.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from optimum_mllm_prune.backbone import Backbone, Group, Site
from optimum_mllm_prune.importance import Scores
from optimum_mllm_prune.planning.selection import weakest


# Kind of units ("heads", "channels") to how many layers stay whole at the beginning and at the end of the decoder.
Whole = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Removal:
    """What goes.

    Attributes:
        units: kind to the name of each pruned block to the units it loses, ascending.
        parameters: how many a cut would remove.
        ratio: the same as a share of the language backbone.
    """

    units: dict[str, dict[str, list[int]]]
    parameters: int
    ratio: float


def paper_removal(backbone: Backbone, scores: Scores, ratio: float, whole: Whole) -> Removal:
    """What the paper's method removes, or as much as it can where the ratio is out of reach.

    Heads and channels lose the same share, so large that `ratio` is removed from the whole backbone: heads the nearest
    number to it, of two as near the smaller, channels what is then left to remove. One unit stays in every block.

    Args:
        backbone: of the original model.
        scores: of its heads and channels.
        ratio: share of the language backbone to remove, in (0, 1).
        whole: the layers that stay as they are.
    """
    groups = {kind: getattr(backbone, kind) for kind in ("heads", "channels")}
    chosen = {kind: _between(group, backbone.num_layers, whole[kind]) for kind, group in groups.items()}
    costs = {kind: sum(cost_of_unit(backbone, groups[kind].sites[i]) for i in sites) for kind, sites in chosen.items()}
    wanted = ratio * backbone.backbone_parameters
    share = wanted / sum(costs[kind] * group.units for kind, group in groups.items())
    heads = _nearest(share * groups["heads"].units, groups["heads"].units)
    left = wanted - heads * costs["heads"]
    counts = {"heads": heads, "channels": _nearest(left / costs["channels"], groups["channels"].units)}
    units = {kind: _weakest(group, scores, chosen[kind], counts[kind]) for kind, group in groups.items()}
    removed = sum(counts[kind] * costs[kind] for kind in groups)
    return Removal(units, removed, removed / backbone.backbone_parameters)


def cost_of_unit(backbone: Backbone, site: Site) -> int:
    """Parameters that a block loses with one of its units."""
    lengths = ((math.prod(backbone.shapes[axis.tensor]) // axis.size, axis) for axis in site.axes)
    return sum(across * (axis.owned // axis.units) for across, axis in lengths)


@torch.no_grad()
def masked_copy(model: PreTrainedModel, backbone: Backbone, removal: Removal) -> PreTrainedModel:
    """A copy of the model in which nobody reads the removed units: their columns of `o_proj` and `down_proj` are 0."""
    masked = copy.deepcopy(model)
    for kind, removed in removal.units.items():
        for site in getattr(backbone, kind).sites:
            columns = masked.get_parameter(site.reader.tensor).unflatten(1, (site.reader.units, -1))
            columns[:, removed.get(site.prefix, [])] = 0
    return masked


def _between(group: Group, num_layers: int, whole: tuple[int, int]) -> list[int]:
    """Positions of the blocks in layers that are pruned."""
    first, last = whole
    return [i for i, site in enumerate(group.sites) if site.layer in range(first, num_layers - last)]


def _nearest(wanted: float, units: int) -> int:
    return min(max(math.ceil(wanted - 0.5), 0), units - 1)


def _weakest(group: Group, scores: Scores, sites: Sequence[int], count: int) -> dict[str, list[int]]:
    lowest = weakest(scores.of(group)[list(sites)], count)
    return {group.sites[i].prefix: units for i, units in zip(sites, lowest, strict=True)}
