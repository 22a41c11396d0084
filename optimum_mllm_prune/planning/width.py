"""Heads and channels that stay: the numbers that meet a budget, as far as the config can say them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from ..backbone import Backbone, Group, NotExpressibleError, Sizes
from ..backbone.skeleton import Shapes
from ..configuration import AUTO, PruningConfig
from ..errors import UserInputError
from ..importance import Scores
from .budget import Budget
from .shares import least_error


LARGEST_MULTIPLE = 64
# Rounding a width to its multiple moves the ratio by at most half a step: one point.
LARGEST_STEP = 0.02


def width_sizes(
    backbone: Backbone,
    config: PruningConfig,
    budget: Budget,
    whole: Sizes,
    scores: Scores | None = None,
) -> tuple[Sizes, list[str]]:
    """`whole` with the heads and channels that stay in every layer that does, and remarks on how they were chosen.

    Heads lose `head_share` times the share that the MLP loses; what the config cannot say of the heads, the MLP gives.
    Where it is "auto", scores are errors and the split that leaves the least of them is taken; as long as there are no
    scores, both lose the same share.

    Raises:
        UserInputError: the architecture cannot express it, or nothing or everything would go.
    """
    groups, notes = backbone.width_groups()
    width = _Width(backbone, config, groups, budget, whole)
    measured = config.head_share == AUTO and len(groups) == 2 and scores is not None
    if measured:
        sizes, note = least_error(list(width.splits()), scores, groups)
        return sizes, [*notes, note]
    pace = config.head_share if len(groups) == 2 and config.head_share != AUTO else 1.0
    sizes, more = width.at_pace(pace)
    if sizes.heads is None and sizes.channels is None:
        raise removes_nothing(budget)
    return sizes, notes + more


@dataclass(frozen=True)
class _Width:
    """What may go by width, and how much of it has to."""

    backbone: Backbone
    config: PruningConfig
    groups: Sequence[Group]
    budget: Budget
    whole: Sizes

    @cached_property
    def shapes(self) -> Shapes:
        """Of all weights, as narrow as the residual stream will be."""
        return self.backbone.narrowed_shapes(self.whole)

    def group(self, kind: str) -> Group | None:
        return next((group for group in self.groups if group.kind == kind), None)

    def cost(self, group: Group) -> int:
        """Parameters that go when every site that stays loses one unit: of the backbone, or of the whole model."""
        cost = 0
        for site in group.sites:
            if site.layer in self.whole.kept_layers or (self.budget.whole and site.layer is None):
                for axis in site.axes:
                    shape = self.shapes[axis.tensor]
                    cost += math.prod(shape) // axis.size * (axis.owned // axis.units)
        return cost

    def share(self, pace: float) -> float:
        """The share that the MLP loses when heads lose `pace` times as much. Raises UserInputError from 1 on."""
        total = sum(self.cost(g) * g.units * (pace if g.kind == "heads" else 1) for g in self.groups)
        if self.budget.remove >= total:
            raise UserInputError(
                f"ratio {self.budget.ratio:.3f} would remove everything: the heads and MLP channels that may go are "
                f"{total / self.backbone.backbone_parameters:.3f} of the language backbone, ask for less."
            )
        return self.budget.remove / total

    def at_pace(self, pace: float) -> tuple[Sizes, list[str]]:
        """Heads lose `pace` times the share that the MLP loses, or the nearest that can be said; the MLP the rest."""
        share, sizes, notes = self.share(pace), self.whole, []
        heads, channels = self.group("heads"), self.group("channels")
        remove = self.budget.remove
        if heads is not None:
            sizes, note = self._with_heads(heads, share * pace)
            notes.append(note)
            remove -= (heads.units - (sizes.heads or heads.units)) * self.cost(heads)
        if channels is not None:
            sizes, note = self._with_channels(channels, sizes, remove)
            notes.append(note)
        return sizes, notes

    def splits(self) -> Iterator[tuple[Sizes, str]]:
        """Every number of heads that the budget allows, the original config class first; the MLP gives the rest.

        Raises:
            UserInputError: there is none.
        """
        self.share(1.0)
        heads, channels = self.group("heads"), self.group("channels")
        choices, cost = dict(self._usable(heads, self.backbone.head_numbers)), self.cost(heads)
        refused, found = None, False
        for kept in sorted(choices, key=lambda n: (choices[n], -n)):
            remove = self.budget.remove - (heads.units - kept) * cost
            if remove < -cost / 2:
                continue
            fewer = self._of_heads(heads, kept, choices[kept])
            try:
                sizes, note = self._with_channels(channels, fewer, remove)
            except UserInputError as error:
                refused = error
                continue
            if sizes.heads is not None or sizes.channels is not None:
                found = True
                yield sizes, f"{self._head_words(heads, kept, choices[kept])}; {note}"
        if not found:
            raise refused or removes_nothing(self.budget)

    def _with_heads(self, heads: Group, share: float) -> tuple[Sizes, str]:
        """The expressible number of heads nearest to their share."""
        wanted = heads.units * (1 - share)
        kept, twin = self._nearest(heads, wanted)
        words = self._head_words(heads, kept, twin)
        if not twin:
            words += f" (their share would leave {wanted:.1f})"
        return self._of_heads(heads, kept, twin), words

    def _nearest(self, heads: Group, wanted: float) -> tuple[int, bool]:
        """The number of heads nearest to what is wanted that a checkpoint can have, and whether it needs the twin; of
        two as near that of the original config class, or the larger one."""

        def distance(number: int) -> float:
            return round(abs(number - wanted), 6)

        # What a checkpoint can have is asked for from the nearest on, since every answer takes a model to be built.
        as_near = groupby(sorted(self.backbone.head_numbers, key=distance), distance)
        usable = (list(self._usable(heads, numbers)) for _, numbers in as_near)
        return min(next(filter(None, usable)), key=lambda one: (one[1], -one[0]))

    def _usable(self, heads: Group, numbers: Iterable[int]) -> Iterator[tuple[int, bool]]:
        """Of these numbers of heads those that a checkpoint can have, and whether they need the twin."""
        for number in numbers:
            twin = False if number == heads.units else self.backbone.needs_twin(number)
            if twin is False or (twin and self.config.allow_twin):
                yield number, twin

    def _of_heads(self, heads: Group, kept: int, twin: bool) -> Sizes:
        return replace(self.whole, heads=None if kept == heads.units else kept, twin=twin)

    def _head_words(self, heads: Group, kept: int, twin: bool) -> str:
        words = f"{heads.unit}s: {heads.units} -> {kept} in every layer"
        if not twin:
            return words
        return (
            f"{words}, which its own config class rejects, so the text backbone is declared as its numerically "
            "identical twin 'mistral'"
        )

    def _with_channels(self, channels: Group, sizes: Sizes, remove: float) -> tuple[Sizes, str]:
        cost, multiple = self.cost(channels), self.config.channel_multiple
        step = multiple or channel_multiple(channels.units, cost / self.backbone.backbone_parameters)
        wanted = channels.units - remove / cost
        if multiple and wanted >= 0.5 and (multiple > channels.units or wanted < multiple / 2):
            raise UserInputError(
                f"channel_multiple {multiple} is too coarse for the {wanted:.0f} of {channels.units} MLP channels "
                "that are to stay: choose a smaller one."
            )
        if wanted < step / 2:
            raise UserInputError(
                f"the heads cannot give their share and the MLP alone has only {channels.units} channels: "
                "ask for less."
            )
        kept = min(max(round(wanted / step), 1) * step, channels.units)
        words = f"MLP channels: {channels.units} -> {kept} in every layer, rounded to a multiple of {step}"
        if kept == channels.units:
            return sizes, words
        candidate = replace(sizes, channels=kept)
        try:
            self.backbone.expressions.of(candidate)
        except NotExpressibleError as error:
            raise UserInputError(f"this architecture cannot express {kept} MLP channels: {error}") from error
        return candidate, words


def removes_nothing(budget: Budget) -> UserInputError:
    """What is told where the nearest size is the present one."""
    return UserInputError(
        f"ratio {budget.ratio:.4f} removes nothing: less than half a step of this architecture, ask for more."
    )


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
