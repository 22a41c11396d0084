"""From a wish (a ratio, a number of layers, a number of parameters) to sizes that the config can express."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..backbone import Backbone, Group, NotExpressibleError, Sizes
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance.registry import goes_in_a_row


LARGEST_MULTIPLE = 64
# Rounding a width to its multiple moves the ratio by at most half a step: one point.
LARGEST_STEP = 0.02
_ONE_BY_ONE = "Ask for less, or use an importance that takes layers one by one."


@dataclass(frozen=True)
class Budget:
    """How much is to go.

    Attributes:
        remove: parameters to remove.
        ratio: the same as a share of the backbone's parameters.
        whole: whether parameters outside the backbone count, which a few keys drive too.
        below: parameters that layers must remain below, so that something is left for width to give.
    """

    remove: float
    ratio: float
    whole: bool = False
    below: float = math.inf

    def part(self, share: float) -> "Budget":
        """A share of it, of which layers may give no more than all of it."""
        return replace(self, remove=share * self.remove, ratio=share * self.ratio, below=self.remove)

    def without(self, removed: int) -> "Budget":
        """What is still to go once some parameters of the backbone have gone."""
        return replace(self, remove=self.remove - removed, ratio=self.ratio * (1 - removed / self.remove))


def budget_of(backbone: Backbone, config: PruningConfig) -> Budget:
    """The parameters to remove.

    Raises:
        UserInputError: `target_params` is not below the present size, or below what is not backbone.
    """
    if config.num_layers is not None:
        remove = config.num_layers * _mean_layer(backbone)
        return Budget(remove, remove / backbone.backbone_parameters)
    if config.target_params is None:
        return Budget(config.ratio * backbone.backbone_parameters, config.ratio)
    remove = backbone.parameters - config.target_params
    if not 0 < remove < backbone.backbone_parameters:
        low = backbone.parameters - backbone.backbone_parameters
        raise UserInputError(
            f"target_params must lie between {low:,} (all but the language backbone) and {backbone.parameters:,} "
            f"(the model as it is), got {config.target_params:,}."
        )
    return Budget(remove, remove / backbone.backbone_parameters, whole=True)


def layers_to_remove(
    backbone: Backbone, config: PruningConfig, budget: Budget, choices: Sequence[Sequence[int]]
) -> list[int]:
    """The layers that go, ascending: the choice that comes closest to the budget.

    Args:
        backbone: of the original model.
        config: what is wanted.
        budget: how much is to go.
        choices: for every number of layers, from none to as many as may go, those that would.

    Raises:
        UserInputError: nothing, everything or more than may go would go.
    """
    if config.num_layers is not None:
        count = config.num_layers
        if count >= backbone.num_layers:
            raise UserInputError(
                f"num_layers {count} would leave nothing: the model has {backbone.num_layers} layers, remove fewer."
            )
    else:
        count = _closest_count(backbone, config, budget, choices)
    if count >= len(choices):
        may = len(choices) - 1
        if goes_in_a_row(config.importance, config.method):
            raise UserInputError(
                f"{count} of {backbone.num_layers} layers would have to go in a row but no run of more than {may} "
                f"may: it would hold a protected layer or the last of a kind. {_ONE_BY_ONE}"
            )
        raise UserInputError(
            f"{count} of {backbone.num_layers} layers would have to go but only {may} may: "
            f"the others are protected{' or cannot be merged' if config.merges else ''}. Ask for less, or use method "
            "'width'."
        )
    return sorted(choices[count])


def removed_with(backbone: Backbone, kept_layers: Sequence[int]) -> int:
    """Parameters that go with the layers that do not stay."""
    return sum(size for layer, size in enumerate(_layer_sizes(backbone)) if layer not in kept_layers)


def width_sizes(
    backbone: Backbone, config: PruningConfig, budget: Budget, kept_layers: Sequence[int]
) -> tuple[Sizes, list[str]]:
    """Heads and channels that stay in every layer that does, and remarks on how they were chosen.

    Heads lose `head_share` times the share that the MLP loses; what the config cannot say of the heads, the MLP gives.

    Raises:
        UserInputError: the architecture cannot express it, or nothing or everything would go.
    """
    groups, notes = backbone.width_groups()
    costs = {group.kind: _cost(backbone, group, kept_layers, budget.whole) for group in groups}
    by_kind = {group.kind: group for group in groups}
    head_share = config.head_share if "channels" in by_kind else 1.0
    total = sum(costs[kind] * group.units * (head_share if kind == "heads" else 1) for kind, group in by_kind.items())
    share = budget.remove / total
    if share >= 1:
        raise UserInputError(
            f"ratio {budget.ratio:.3f} would remove everything: the heads and MLP channels that may go are "
            f"{total / backbone.backbone_parameters:.3f} of the language backbone, ask for less."
        )
    sizes = Sizes(tuple(kept_layers))
    remove = budget.remove
    if "heads" in by_kind:
        sizes, note = _with_heads(backbone, by_kind["heads"], sizes, share * head_share, config.allow_twin)
        notes.append(note)
        kept = by_kind["heads"].units if sizes.heads is None else sizes.heads
        remove -= (by_kind["heads"].units - kept) * costs["heads"]
    if "channels" in by_kind:
        cost = costs["channels"]
        sizes, note = _with_channels(backbone, by_kind["channels"], sizes, remove, cost, config.channel_multiple)
        notes.append(note)
    if sizes.heads is None and sizes.channels is None:
        raise UserInputError(
            f"ratio {budget.ratio:.4f} removes nothing: less than half a step of this architecture, ask for more."
        )
    return sizes, notes


def channel_multiple(width: int, share_of_one: float) -> int:
    """The largest power of two up to 64 that divides `width` and whose step moves the ratio by at most two points.

    Args:
        width: the present `intermediate_size`.
        share_of_one: share of the backbone's parameters that one channel in every layer makes up.
    """
    multiple = LARGEST_MULTIPLE
    while multiple > 1 and (width % multiple or multiple * share_of_one > LARGEST_STEP):
        multiple //= 2
    return multiple


def _mean_layer(backbone: Backbone) -> float:
    return sum(_layer_sizes(backbone)) / backbone.num_layers


def _layer_sizes(backbone: Backbone) -> list[int]:
    sizes = [0] * backbone.num_layers
    for name, shape in backbone.shapes.items():
        layer = backbone.layer_of(name)
        if layer is not None:
            sizes[layer] += math.prod(shape)
    return sizes


def _closest_count(backbone: Backbone, config: PruningConfig, budget: Budget, choices: Sequence[Sequence[int]]) -> int:
    sizes = _layer_sizes(backbone)
    removed = [sum(sizes[i] for i in gone) for gone in choices]
    if budget.remove > max(removed) + _mean_layer(backbone) / 2:
        most = f"{max(removed) / backbone.backbone_parameters:.3f} of the language backbone"
        if goes_in_a_row(config.importance, config.method):
            raise UserInputError(
                f"ratio {budget.ratio:.3f} is more than layers in a row can give: the longest run that may go is "
                f"{most}. {_ONE_BY_ONE}"
            )
        raise UserInputError(
            f"ratio {budget.ratio:.3f} would remove everything: the layers that may go are {most}, ask for less."
        )
    counts = [n for n, gone in enumerate(removed) if gone < budget.below]
    count = min(counts, key=lambda n: abs(removed[n] - budget.remove))
    one = _mean_layer(backbone) / backbone.backbone_parameters
    if count == 0:
        raise UserInputError(
            f"ratio {budget.ratio:.4f} removes nothing: one layer is {one:.4f} of the language backbone, "
            "ask for more or use method 'width'."
        )
    return count


def _cost(backbone: Backbone, group: Group, kept_layers: Sequence[int], whole: bool) -> int:
    """Parameters that go when every site that stays loses one unit: of the backbone, or of the whole model."""
    cost = 0
    sites = [site for site in group.sites if site.layer in kept_layers or (whole and site.layer is None)]
    for axis in (axis for site in sites for axis in site.axes):
        cost += math.prod(backbone.shapes[axis.tensor]) // axis.size * (axis.owned // axis.units)
    return cost


def _with_heads(backbone: Backbone, heads: Group, whole: Sizes, share: float, allow_twin: bool) -> tuple[Sizes, str]:
    """The expressible number of heads nearest to their share; the original config class wins a tie."""
    wanted = heads.units * (1 - share)
    choices = {heads.units: False} | {n: twin for n, twin in backbone.head_choices.items() if allow_twin or not twin}
    kept = min(choices, key=lambda n: (round(abs(n - wanted), 6), choices[n], -n))
    words = f"{heads.unit}s: {heads.units} -> {kept} in every layer"
    if kept == heads.units:
        return whole, f"{words} (their share would leave {wanted:.1f})"
    if choices[kept]:
        return replace(whole, heads=kept, twin=True), (
            f"{words}, which its own config class rejects, so the text backbone is declared as its numerically "
            "identical twin 'mistral'"
        )
    return replace(whole, heads=kept), f"{words} (their share would leave {wanted:.1f})"


def _with_channels(
    backbone: Backbone, channels: Group, sizes: Sizes, remove: float, cost: int, multiple: int | None
) -> tuple[Sizes, str]:
    step = multiple or channel_multiple(channels.units, cost / backbone.backbone_parameters)
    wanted = channels.units - remove / cost
    if multiple and wanted >= 0.5 and (multiple > channels.units or wanted < multiple / 2):
        raise UserInputError(
            f"channel_multiple {multiple} is too coarse for the {wanted:.0f} of {channels.units} MLP channels that "
            "are to stay: choose a smaller one."
        )
    if wanted < step / 2:
        raise UserInputError(
            f"the heads cannot give their share and the MLP alone has only {channels.units} channels: ask for less."
        )
    kept = min(max(round(wanted / step), 1) * step, channels.units)
    words = f"MLP channels: {channels.units} -> {kept} in every layer, rounded to a multiple of {step}"
    if kept == channels.units:
        return sizes, words
    candidate = replace(sizes, channels=kept)
    try:
        backbone.built(candidate)
    except NotExpressibleError as error:
        raise UserInputError(f"this architecture cannot express {kept} MLP channels: {error}") from error
    return candidate, words
