"""Every metric by name: what it scores, what it needs, how many calibration rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from .activation import Activation, Wanda
from .block_influence import BlockInfluence
from .hidden import HiddenActivation, HiddenMagnitude, RandomHidden
from .observer import Observer, Subject
from .taylor import Taylor, TaylorGroup
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
        one_batch: whether all rows belong in one batch, because the score is not linear in the gradient.
    """

    needs: Needs
    create: Callable[[Subject], Observer]
    samples: int = 0
    one_batch: bool = False


METRICS: dict[str, dict[str, Metric]] = {
    "block_influence": {"layer": Metric("forward", BlockInfluence, 50)},
    "magnitude": {"layer": Metric("weights", LayerMagnitude)},
    "taylor": {"width": Metric("backward", Taylor, 10, one_batch=True)},
    "taylor_group": {"width": Metric("backward", TaylorGroup, 10)},
    "activation": {"width": Metric("forward", Activation, 50), "hidden": Metric("forward", HiddenActivation, 50)},
    "wanda": {"width": Metric("forward", Wanda, 50)},
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
}


def scored_as(method: str) -> str:
    """The method whose metrics are chosen from: of "mixed" that is "width", its layers take the companion."""
    return method if method in ("layer", "hidden") else "width"


def metrics_for(method: str) -> list[str]:
    """Names of the metrics that can be chosen for `method`."""
    return [name for name, by_method in METRICS.items() if scored_as(method) in by_method]


def metric_of(name: str, method: str) -> Metric:
    """The metric of that name for `method`; KeyError where there is none."""
    return METRICS[name][scored_as(method)]


def default_metric(method: str) -> str:
    """The metric the paper uses for `method`; of "hidden", which it has not, that of Minitron."""
    return {"layer": "block_influence", "width": "taylor", "hidden": "activation"}[scored_as(method)]


def companion(method: str, name: str, other: str | None = None) -> str:
    """Metric for the method `other`, scored in the same passes as `name`; by default the one of layer and width that
    `method` is not."""
    other = other or ("width" if method == "layer" else "layer")
    return "random" if name == "random" else COMPANIONS[other][METRICS[name][method].needs]


def companions(method: str, name: str) -> dict[str, str]:
    """Methods beside `method` to their metrics, which the passes of `name` give for nothing."""
    return {other: companion(method, name, other) for other in COMPANIONS if other != method}
