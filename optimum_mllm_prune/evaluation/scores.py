"""How good one model's predictions are, how sure that is, and how they stand beside another model's."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .metrics import METRICS
from .predictions import AGREEMENT, PERPLEXITY, Predictions
from .statistics import Interval, PairedTest, bootstrap_interval, paired_test, retained_interval


@dataclass(frozen=True)
class GroupScore:
    """One category of rows.

    Attributes:
        rows: how many there are.
        value: of the metric, with its interval.
        baseline: of the other model, without; None where there is none.
    """

    rows: int
    value: Interval
    baseline: float | None


@dataclass(frozen=True)
class Score:
    """One metric over all rows.

    Attributes:
        metric: its name.
        rows: how many there are.
        unit: "percent", or None.
        higher_is_better: whether a larger value is a better model.
        value: with its interval.
        extras: figures that belong beside it, by name.
        baseline: of the other model; None where there is none.
        retained: 100 * value / baseline, a ratio of means as in Huang et al. (arXiv 2507.20749); None without another,
            and where a larger value is a worse model.
        test: of the two models on the same rows; None without another.
        groups: the same by category.
    """

    metric: str
    rows: int
    unit: str | None
    higher_is_better: bool
    value: Interval
    extras: dict[str, float] = field(default_factory=dict)
    baseline: Interval | None = None
    retained: Interval | None = None
    test: PairedTest | None = None
    groups: dict[str, GroupScore] = field(default_factory=dict)


def scored(
    metric: str,
    own: Predictions,
    accepted: Sequence[Sequence[str]],
    baseline: Predictions | None = None,
    groups: Sequence[Any] | None = None,
    seed: int = 42,
) -> Score:
    """One metric of one model, beside another's where there is one.

    Args:
        metric: a name of `METRICS`.
        own: what the model said.
        accepted: the right answers of each row.
        baseline: what the other model said of the same rows.
        groups: a category for each row.
        seed: of the resampling.

    Raises:
        UserInputError: rows do not suit the metric.
    """
    measure = METRICS[metric]()
    ours = measure.contributions(*own.inputs_of(metric, accepted, baseline))
    # A model agrees with itself everywhere: there is nothing to compare with.
    compared = baseline is not None and metric != AGREEMENT
    theirs = measure.contributions(*baseline.inputs_of(metric, accepted, None)) if compared else None
    keeps = compared and measure.higher_is_better
    return Score(
        metric=metric,
        rows=len(ours),
        unit=measure.unit,
        higher_is_better=measure.higher_is_better,
        value=bootstrap_interval(ours, measure.value, seed=seed),
        extras=measure.extras(ours.sum(axis=0)),
        baseline=bootstrap_interval(theirs, measure.value, seed=seed) if compared else None,
        retained=retained_interval(theirs, ours, measure.value, seed=seed) if keeps else None,
        test=paired_test(theirs, ours, measure.value, seed=seed) if compared else None,
        groups=_grouped(measure.value, ours, theirs, groups, seed),
    )


def check_references(metrics: Collection[str], accepted: Sequence[Sequence[str]]) -> None:
    """Raise UserInputError where the right answers of a row do not suit a metric, before any model answers."""
    for metric in metrics:
        if metric not in (AGREEMENT, PERPLEXITY):
            METRICS[metric]().contributions([texts[0] for texts in accepted], accepted)


def _grouped(
    value: Any, ours: np.ndarray, theirs: np.ndarray | None, groups: Sequence[Any] | None, seed: int
) -> dict[str, GroupScore]:
    """Each category by its name, in the order in which it first appears."""
    found = {}
    names = [str(group) for group in groups or ()]
    for name in dict.fromkeys(names):
        inside = np.array([other == name for other in names])
        baseline = None if theirs is None else float(value(theirs[inside].sum(axis=0)))
        found[name] = GroupScore(int(inside.sum()), bootstrap_interval(ours[inside], value, seed=seed), baseline)
    return found
