"""Method "hidden": how many dimensions of the residual stream stay, and which."""

from collections.abc import Iterable
from dataclasses import replace
from math import gcd

from ..backbone import Backbone, Hidden, NotExpressibleError, Sizes
from ..errors import UserInputError
from ..importance import Scores
from .budget import Budget, removed_with
from .selection import weakest
from .width import channel_multiple, removes_nothing


# Kernels read 16 bytes at a time, eight numbers of a 16-bit format; those of experts do not run otherwise.
LEAST_MULTIPLE = 8
SCALED = (
    "token embeddings are multiplied so that they give what they gave, as the model scales them by its hidden size"
)


def hidden_sizes(backbone: Backbone, budget: Budget, whole: Sizes) -> tuple[Sizes, list[str]]:
    """`whole` with the hidden size that comes closest to the budget among those that the config can express, and a
    remark.

    Raises:
        UserInputError: the architecture cannot express another one, or nothing or everything would go.
    """
    size = backbone.residual_stream().size
    step = max(channel_multiple(size, 1 / size), gcd(size, LEAST_MULTIPLE))
    kept = _nearest(backbone, whole, _wanted(backbone, whole, budget), step)
    if kept == size:
        raise removes_nothing(budget)
    note = (
        f"hidden size: {size} -> {kept} in all layers, embeddings, head and projector, rounded to a multiple of {step}"
    )
    return replace(whole, hidden=kept), [note, *([SCALED] if backbone.hidden.final_norm else [])]


def removed_hidden(hidden: Hidden, scores: Scores, kept: int) -> tuple[list[int], dict[str, list[int]]]:
    """The dimensions that go, and of each projector's inner channels those that go with them.

    Raises:
        UserInputError: the scores hold none of these.
    """
    found, sites = scores.tensors.get("hidden"), hidden.projector.sites if hidden.projector else ()
    inner = scores.tensors.get("projector")
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (found, inner)]
    if shapes != [(hidden.size,), (len(sites), hidden.size) if sites else None]:
        raise UserInputError(f"the scores hold none of {hidden.size} dimensions of the hidden size: calibrate again.")
    (dimensions,) = weakest(found.unsqueeze(0), hidden.size - kept)
    channels = weakest(inner, hidden.size - kept) if sites else []
    return dimensions, {site.prefix: units for site, units in zip(sites, channels, strict=True)}


def norm_factors(hidden: Hidden, scores: Scores, removed: list[int]) -> dict[str, float]:
    """By what the norms are to be multiplied so that they divide by what they divided by, on average over tokens.

    A norm divides by the root mean square r of its row. Over the dimensions K that stay that is another number; the
    mean of r_K^2 / r^2 over tokens is the mean over K of the energies x^2 / r^2, and its root is made up for.

    Args:
        hidden: the residual stream.
        scores: those without energies, of weights alone, give no factors.
        removed: dimensions that go.

    Raises:
        UserInputError: the energies are of other norms.
    """
    energy = scores.tensors.get("hidden_energy")
    if energy is None:
        return {}
    if tuple(energy.shape) != (len(hidden.norms), hidden.size):
        raise UserInputError(f"the scores hold none of {len(hidden.norms)} norms: calibrate again.")
    kept = [i for i in range(hidden.size) if i not in set(removed)]
    roots = energy[:, kept].double().mean(dim=1).sqrt().tolist()
    return {name: round(root, 6) for name, root in zip(hidden.norms, roots, strict=True) if root > 0}


def _wanted(backbone: Backbone, whole: Sizes, budget: Budget) -> float:
    """The size that meets the budget on a straight line: parameters go by the hidden size but for a projector's."""
    size = backbone.hidden.size
    fewer = _first(backbone, whole, range(size // 2, 0, -1))
    gone, then = (removed_with(backbone, sizes, budget.whole) for sizes in (whole, replace(whole, hidden=fewer)))
    cost = (then - gone) / (size - fewer)
    if budget.remove >= cost * size:
        raise UserInputError(
            f"ratio {budget.ratio:.3f} would remove everything: what goes by the hidden size is "
            f"{cost * size / backbone.backbone_parameters:.3f} of the language backbone, ask for less."
        )
    return size - budget.remove / cost


def _nearest(backbone: Backbone, whole: Sizes, wanted: float, step: int) -> int:
    """The multiple of `step` nearest to the wish that the config can express; the present size among them."""
    size = backbone.hidden.size
    by_distance = sorted(range(step, size + 1, step), key=lambda n: (abs(n - wanted), -n))
    return _first(backbone, whole, by_distance)


def _first(backbone: Backbone, whole: Sizes, candidates: Iterable[int]) -> int:
    """The first of some sizes that the config can express."""
    reason = "it has a single dimension"
    for size in candidates:
        try:
            backbone.expressions.of(replace(whole, hidden=size))
            return size
        except NotExpressibleError as error:
            reason = str(error)
    raise UserInputError(
        f"the hidden size of this architecture cannot be smaller ({reason}): use method 'width' or 'layer'."
    )
