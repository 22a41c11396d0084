"""From a wish (a ratio, a number of layers, a number of parameters) to what is to go, and the layers that give it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..backbone import Backbone, Sizes
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance.registry import goes_in_a_row


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


def removed_with(backbone: Backbone, sizes: Sizes, whole: bool) -> int:
    """Parameters that are gone with these sizes: of the backbone, or of the whole model.

    Raises:
        UserInputError: the config cannot say them.
    """
    if sizes == Sizes(tuple(range(backbone.num_layers))):
        return 0
    left = backbone.expressed(sizes)
    if whole:
        return backbone.parameters - left.parameters
    return backbone.backbone_parameters - left.backbone_parameters


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
