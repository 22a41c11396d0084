"""Two plans that follow one another, told as one in the numbers of the first model."""

from dataclasses import replace

from ..backbone import Backbone, Group
from .plan import PruningPlan


def composed(first: PruningPlan, then: PruningPlan, backbone: Backbone) -> PruningPlan:
    """What is gone after `first` and, from what that left, `then`.

    Args:
        first: made for the original.
        then: made for the model that `first` leaves; layers and units by their numbers there.
        backbone: of the original.

    Returns:
        `then` in the original's numbers; its figures are those of `then`, to be worked out anew.
    """
    kept = first.kept_layers
    removed = sorted([*first.removed_layers, *(kept[layer] for layer in then.removed_layers)])
    return replace(
        then,
        model=first.model,
        num_layers=first.num_layers,
        removed_layers=removed,
        head_unit="query" if "query" in (first.head_unit, then.head_unit) else "group",
        twin=first.twin or then.twin,
        scores=first.scores,
        config=first.config,
        removed_heads=_units("heads", first, then, backbone),
        removed_channels=_units("channels", first, then, backbone),
    )


def _units(kind: str, first: PruningPlan, then: PruningPlan, backbone: Backbone) -> dict[str, list[int]]:
    """Module name of every block of the original to the units that it has lost in the end."""
    before, after = (getattr(plan, f"removed_{kind}") for plan in (first, then))
    if not after:
        return dict(before)
    group: Group = getattr(backbone, kind)
    found, gone = {}, []
    for site in group.sites:
        name = backbone.renamed(f"{site.prefix}.", first.kept_layers)
        if name is None:
            gone.append(site.prefix)
            continue
        lost = list(before.get(site.prefix, ()))
        left = [unit for unit in range(group.units) if unit not in set(lost)]
        found[site.prefix] = sorted([*lost, *(left[unit] for unit in after[name.rstrip(".")])])
    # Blocks that went with their layers: a plan names as many units of every block.
    example = next(iter(found.values()))
    found |= {prefix: list(example) for prefix in gone}
    return {site.prefix: found[site.prefix] for site in group.sites}
