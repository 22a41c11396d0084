"""Two plans that follow one another, told as one in the numbers of the first model; and one plan as two."""

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


def parted(plan: PruningPlan, backbone: Backbone) -> tuple[PruningPlan, Backbone, PruningPlan]:
    """A plan that narrows the residual stream beside other things, as two: the other things first, then the stream.

    Args:
        plan: made for the original.
        backbone: of the original.

    Returns:
        The first plan, the backbone of what it leaves, and the second plan, in the numbers of what is left.
    """
    first = replace(plan, removed_hidden=[], removed_projector={}, norm_factors={})
    left = Backbone(backbone.model_class, backbone.config_for(first.sizes(backbone)), backbone.head_unit)
    renamed = {backbone.renamed(f"{name}.", plan.kept_layers): f for name, f in plan.norm_factors.items()}
    factors = {name.rstrip("."): factor for name, factor in renamed.items() if name is not None}
    then = replace(
        plan,
        method="hidden",
        model=plan.model | {"fingerprint": left.fingerprint},
        num_layers=left.num_layers,
        removed_layers=[],
        removed_heads={},
        removed_channels={},
        twin=None,
        norm_factors=factors,
        config={},
    )
    return first, left, then


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
