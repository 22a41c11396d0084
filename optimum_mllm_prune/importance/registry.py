"""Every metric by name: what it scores, what it needs, how many calibration rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from .activation import Activation, Wanda
from .angular import AngularDistance
from .answer_loss import AnswerLoss
from .block_influence import BlockInfluence
from .fluctuation import Fluctuation
from .hidden import HiddenActivation, HiddenMagnitude, RandomHidden
from .merging import Merging
from .observer import ByModality, Observer, Subject
from .reconstruction import Reconstruction
from .taylor import Taylor, TaylorGroup
from .taylor_second import TaylorMixed, TaylorSecond
from .weights import LayerMagnitude, RandomLayers, RandomUnits, UnitMagnitude


Needs = Literal["weights", "forward", "backward", "rows"]


@dataclass(frozen=True)
class Metric:
    """How to make a metric.

    Attributes:
        needs: "weights" alone, "forward" passes or "backward" passes over calibration rows, or the "rows" themselves,
            of which the observer makes passes of its own.
        create: makes the observer.
        samples: calibration rows by default (the paper's numbers for gradients and for Block Influence).
        batch: whether "all" rows belong in one batch (by default) or each in "one" of its own (always), because the
            score is not linear in the gradient; None where it does not matter.
        in_a_row: whether layers go as one run of neighbours, scored as a whole.
        by_layer: whether every layer can be looked at apart, all rows at once, so that the weights of no other need
            be in memory.
        blind_to_weights: whether it looks at what flows through a model alone, so that its linear maps may be held in
            a few bits.
    """

    needs: Needs
    create: Callable[[Subject], Observer]
    samples: int = 0
    batch: Literal["all", "one"] | None = None
    in_a_row: bool = False
    by_layer: bool = False
    blind_to_weights: bool = False

    @property
    def weighs_tokens(self) -> bool:
        """Whether image, prompt and answer tokens can be weighted."""
        return isinstance(self.create, type) and issubclass(self.create, ByModality)

    @property
    def takes_offloaded(self) -> bool:
        """Whether not all weights need to be in memory at once."""
        return self.by_layer or self.needs == "weights"


METRICS: dict[str, dict[str, Metric]] = {
    "block_influence": {"layer": Metric("forward", BlockInfluence, 50, by_layer=True, blind_to_weights=True)},
    "angular": {"layer": Metric("forward", AngularDistance, 50, in_a_row=True, blind_to_weights=True)},
    "loss": {"layer": Metric("rows", AnswerLoss, 10, blind_to_weights=True)},
    "merge": {"layer": Metric("rows", Merging, 10)},
    "magnitude": {"layer": Metric("weights", LayerMagnitude)},
    "taylor": {"width": Metric("backward", Taylor, 10, batch="all", by_layer=True)},
    "taylor_second": {"width": Metric("backward", TaylorSecond, 10, batch="one", by_layer=True)},
    "taylor_mixed": {"width": Metric("backward", TaylorMixed, 10, batch="one")},
    "taylor_group": {"width": Metric("backward", TaylorGroup, 10, by_layer=True, blind_to_weights=True)},
    "activation": {
        "width": Metric("forward", Activation, 50, by_layer=True, blind_to_weights=True),
        "hidden": Metric("forward", HiddenActivation, 50),
    },
    "wanda": {"width": Metric("forward", Wanda, 50, by_layer=True)},
    "fluctuation": {"width": Metric("forward", Fluctuation, 50, by_layer=True)},
    "reconstruction": {"width": Metric("rows", Reconstruction, 50, by_layer=True)},
    "magnitude_l1": {"width": Metric("weights", partial(UnitMagnitude, norm="l1"))},
    "magnitude_l2": {
        "width": Metric("weights", partial(UnitMagnitude, norm="l2")),
        "hidden": Metric("weights", HiddenMagnitude),
    },
    "random": {
        "layer": Metric("weights", RandomLayers),
        "width": Metric("weights", RandomUnits),
        "hidden": Metric("weights", RandomHidden),
    },
}

# The other method's metric that the same passes give for nothing, so that one file of scores serves both methods.
COMPANIONS: dict[str, dict[Needs, str]] = {
    "layer": {"weights": "magnitude"} | dict.fromkeys(("forward", "backward", "rows"), "block_influence"),
    "width": {"weights": "magnitude_l2"} | dict.fromkeys(("forward", "backward", "rows"), "activation"),
    "hidden": {"weights": "magnitude_l2"} | dict.fromkeys(("forward", "backward", "rows"), "activation"),
}

# Of these a score is an error that removal leaves, so that heads and channels can be weighed against each other.
METRICS_OF_ERRORS = ("reconstruction",)


def scored_as(method: str) -> str:
    """The method whose metrics are chosen from: of "mixed" that is "width", its layers take the companion."""
    return method if method in ("layer", "hidden") else "width"


def metrics_for(method: str) -> list[str]:
    """Names of the metrics that can be chosen for `method`."""
    return [name for name, by_method in METRICS.items() if scored_as(method) in by_method]


def metric_of(name: str, method: str) -> Metric:
    """The metric of that name for `method`; KeyError where there is none."""
    return METRICS[name][scored_as(method)]


def goes_in_a_row(name: str, method: str) -> bool:
    """Whether layers go as one run of neighbours when `method` is asked for with the metric of that name."""
    return method == "layer" and metric_of(name, method).in_a_row


def default_metric(method: str) -> str:
    """The paper's for layers, Minitron's for hidden; for width the one that kept most in docs/zero_shot.md."""
    return {"layer": "block_influence", "width": "reconstruction", "hidden": "activation"}[scored_as(method)]


def companion(method: str, name: str, other: str | None = None) -> str:
    """Metric for the method `other`, scored in the same passes as `name`; by default the one of layer and width that
    `method` is not."""
    other = other or ("width" if method == "layer" else "layer")
    return "random" if name == "random" else COMPANIONS[other][METRICS[name][method].needs]


def companions(method: str, name: str, with_hidden: bool = False) -> dict[str, str]:
    """Methods beside `method`, "hidden" only where it is asked for, to their metrics, which the passes of `name` give
    for nothing."""
    others = [other for other in COMPANIONS if other != method and (with_hidden or other != "hidden")]
    return {other: companion(method, name, other) for other in others}
