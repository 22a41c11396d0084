"""How sure a metric's value is: intervals for one model, and two models compared on the same rows.

A metric is given by its contributions, float64 (rows, k), and by its `value`, which turns sums over rows (..., k) into
the metric (...). Everything is seeded, and memory does not grow with the number of resamples.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

from ..errors import UserInputError


Value = Callable[[np.ndarray], np.ndarray]

# float64 numbers drawn at once: 32 MiB.
_AT_ONCE = 2**22
# Differences this close, relative to the values, are the same: sums in another order round otherwise.
_SAME = 1e-9


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval, in the value's unit; NaN bounds where the rows cannot say."""

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class PairedTest:
    """Whether two models differ.

    Attributes:
        difference: value of the second minus value of the first, in the metric's unit.
        p_value: two-sided, in (0, 1]: how often chance alone makes a difference as large.
        exact: whether every exchange was counted, and not a sample of them.
    """

    difference: float
    p_value: float
    exact: bool


def bootstrap_interval(
    contributions: np.ndarray, value: Value, confidence: float = 0.95, resamples: int = 9999, seed: int = 42
) -> Interval:
    """Percentile bootstrap over rows (Efron 1979; Efron and Tibshirani 1993, chapter 13).

    The percentile and not the BCa interval, because it is always defined, while the jackknife of BCa divides 0 by 0
    where few rows differ. What no row shows a resample cannot show: if all rows are equal, both bounds are the value.
    One row alone says nothing of others: its bounds are NaN. Resamples without a value are left out, and if they are
    more than the share that the interval leaves out, the bounds are NaN.

    Args:
        contributions: float64 (rows, k).
        value: the metric of sums over rows.
        confidence: coverage asked for, in (0, 1).
        resamples: how many times rows are drawn with replacement.
        seed: of the draws.

    Raises:
        UserInputError: there is no row.
    """
    if len(contributions) == 0:
        raise UserInputError("There is no row to draw from: measure at least one.")
    columns = np.ascontiguousarray(contributions.T)
    rows = np.arange(len(contributions))
    statistic = partial(_value_of_rows, columns, value)
    found = float(statistic(rows))
    drawn = _resampled(rows, statistic, resamples, seed) if len(rows) > 1 else np.full(1, np.nan)
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < confidence * len(drawn):
        return Interval(found, float("nan"), float("nan"), confidence)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(found, float(low), float(high), confidence)


def retained_interval(
    before: np.ndarray,
    after: np.ndarray,
    value: Value,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 42,
) -> Interval:
    """Retained performance, 100 * value after / value before, in percent, with its paired bootstrap interval.

    Each resample takes the same rows of both models, so what is hard in a row for both does not widen the interval.
    NaN where there was nothing to retain. Of a metric whose lower values are better, more than 100 % is worse.

    Args:
        before: contributions of the original model, float64 (rows, k).
        after: contributions of the pruned model on the same rows, float64 (rows, k).
        value: the metric of sums over rows.
        confidence: coverage asked for, in (0, 1).
        resamples: how many times rows are drawn with replacement.
        seed: of the draws.

    Raises:
        UserInputError: the two models were not measured on the same rows.
    """
    _check_pair(before, after)
    both = np.concatenate([before, after], axis=1)
    return bootstrap_interval(both, partial(_retained, value), confidence, resamples, seed)


def paired_test(
    first: np.ndarray, second: np.ndarray, value: Value, resamples: int = 9999, seed: int = 42
) -> PairedTest:
    """Permutation test of two models on the same rows (Fisher 1935; Noreen 1989, approximate randomization).

    If the models are alike, which of them gave which contribution is chance, row by row: they are exchanged at random,
    and the p-value is the share of exchanges after which the values differ as much as they do. Rows with equal
    contributions change nothing and are left out. All exchanges are counted if there are no more than `resamples`;
    of a sample the share is (found + 1) / (drawn + 1), which is never 0 (Phipson and Smyth 2010).

    Args:
        first: contributions of one model, float64 (rows, k).
        second: contributions of the other on the same rows, float64 (rows, k).
        value: the metric of sums over rows.
        resamples: how many exchanges are drawn.
        seed: of the draws.

    Raises:
        UserInputError: the two models were not measured on the same rows.
    """
    _check_pair(first, second)
    apart = (second - first)[(first != second).any(axis=1)]
    exact = 2 ** len(apart) <= resamples
    exchanges = _every_exchange(len(apart)) if exact else _random_exchanges(len(apart), resamples, seed)
    sums = first.sum(axis=0), second.sum(axis=0)
    values = [float(value(each)) for each in sums]
    difference = values[1] - values[0]
    enough = abs(difference) - _SAME * max(map(abs, values))
    drawn, found = 0, 0
    for exchanged in exchanges:
        moved = exchanged @ apart
        differences = value(sums[1] - moved) - value(sums[0] + moved)
        drawn += len(exchanged)
        found += int((np.abs(differences) >= enough).sum())
    return PairedTest(difference, found / drawn if exact else (found + 1) / (drawn + 1), exact)


def _resampled(rows: np.ndarray, statistic: Callable, resamples: int, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        # Resamples without a value are dealt with above.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        return bootstrap(
            (rows,),
            statistic,
            n_resamples=resamples,
            batch=_batch(len(rows)),
            vectorized=True,
            method="percentile",
            rng=seed,
        ).bootstrap_distribution


def _value_of_rows(columns: np.ndarray, value: Value, rows: np.ndarray, axis: int = -1) -> np.ndarray:
    """`value` of the rows chosen along `axis`; one column after the other, which bounds memory."""
    return value(np.stack([column[rows].sum(axis=axis) for column in columns], axis=-1))


def _retained(value: Value, sums: np.ndarray) -> np.ndarray:
    before, after = (np.asarray(value(half)) for half in np.split(sums, 2, axis=-1))
    return 100 * np.divide(after, before, out=np.full(before.shape, np.nan), where=before != 0)


def _every_exchange(rows: int) -> Iterator[np.ndarray]:
    """All ways to exchange some of the rows: batches of float64 (batch, rows), 1 where a row is exchanged."""
    ways, bits = 2**rows, np.arange(rows)
    for start in range(0, ways, _batch(rows)):
        numbers = np.arange(start, min(start + _batch(rows), ways))[:, None]
        yield (numbers >> bits & 1).astype(np.float64)


def _random_exchanges(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """`resamples` of them, drawn at random, in the same form."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, _batch(rows)):
        size = min(_batch(rows), resamples - start)
        yield random.integers(0, 2, size=(size, rows), dtype=np.int8).astype(np.float64)


def _batch(rows: int) -> int:
    return max(1, _AT_ONCE // max(1, rows))


def _check_pair(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise UserInputError(
            f"One model has {len(first)} rows and the other {len(second)}: measure both on the same, with one metric."
        )
