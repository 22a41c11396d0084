"""What models kept in the paper: its figures, and what they let expect of a ratio between them.

Percent of the original's mean over nine benchmarks, at 15, 30, 45 and 60 % of the language backbone removed: Huang et
al., arXiv 2507.20749 and 2604.24380. Those of one model alone are read off plots, to about half a point.
"""

from collections.abc import Sequence
from dataclasses import dataclass


SOURCE = "Huang et al., arXiv 2507.20749 and 2604.24380"
PERCENTS = (15, 30, 45, 60)
MODELS = ("LLaVA-1.5-7B", "Mini-InternVL-4B", "Bunny-3B")

WIDTH_FROM = 45

Curve = tuple[float, float, float, float]

UNTRAINED: dict[str, tuple[Curve, ...]] = {
    "width": ((90.87, 79.88, 32.43, 6.75), (94.74, 73.72, 40.52, 7.05), (90.87, 75.58, 47.44, 14.51)),
    "layer": ((72.22, 69.18, 34.40, 5.34), (90.48, 57.42, 34.17, 4.79), (88.84, 69.03, 45.99, 11.77)),
}
# Layers up to 30 %, width from `WIDTH_FROM` %; adapters and projector, cross entropy and hidden states.
BEST: tuple[Curve, ...] = ((98.10, 96.38, 83.99, 78.13), (99.12, 95.96, 86.22, 79.39), (98.98, 94.37, 90.48, 83.86))
# The first model alone.
PROJECTOR: dict[str, tuple[Curve, ...]] = {"width": ((94.0, 87.6, 79.3, 47.0),), "layer": ((95.2, 92.9, 79.0, 55.0),)}
WIDTH_BY_LOSS: dict[str, Curve] = {
    "sft": (95.0, 90.3, 83.9, 75.5),
    "kd": (94.7, 86.1, 78.4, 59.6),
    "hidden": (95.7, 83.2, 72.1, 57.7),
    "sft+hidden": (96.4, 92.2, 83.7, 79.8),
}
# With 5 % of the data, in percent of what all the data reach.
FEW_DATA: Curve = (99.8, 97.7, 96.4, 68.9)


@dataclass(frozen=True)
class Retained:
    """What others kept, in percent of the original.

    Attributes:
        low: the least of the models.
        high: the most.
        models: which they were.
    """

    low: float
    high: float
    models: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.low:.1f} %" if len(self.models) == 1 else f"{self.low:.1f}-{self.high:.1f} %"


def expected(ratio: float, method: str, recovery: str) -> Retained | None:
    """What the paper's models kept at a ratio; between its ratios, and down to 100 % at 0, on straight lines.

    Args:
        ratio: share of the language backbone removed, in (0, 1).
        method: "layer" or "width".
        recovery: "none", "projector", "lora" or "full".

    Returns:
        None where the paper has no figures: beyond 60 %, for a backbone trained in full, and for layers with adapters
        from 45 % up.
    """
    percent = whole_percent(ratio)
    curves = _curves(method, recovery, percent)
    return range_at(curves, percent) if curves and percent <= PERCENTS[-1] else None


def whole_percent(ratio: float) -> int:
    """A ratio as the paper names its own: five of 32 layers, 15.02 %, are 15 %."""
    return max(1, round(100 * ratio))


def range_at(curves: Sequence[Curve], percent: int) -> Retained:
    """The least and the most of some curves, the first models first, at a percentage up to 60."""
    values = [_at(curve, percent) for curve in curves]
    return Retained(min(values), max(values), MODELS[: len(curves)])


def _curves(method: str, recovery: str, percent: int) -> Sequence[Curve]:
    if recovery == "none":
        return UNTRAINED[method]
    if recovery == "projector":
        return PROJECTOR[method]
    if recovery != "lora":
        return ()
    if method == "width":
        return BEST if percent >= WIDTH_FROM else (WIDTH_BY_LOSS["sft+hidden"],)
    return BEST if percent < WIDTH_FROM else ()


def _at(curve: Curve, percent: int) -> float:
    xs, ys = (0, *PERCENTS), (100.0, *curve)
    i = next(i for i in range(1, len(xs)) if percent <= xs[i])
    part = (percent - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + part * (ys[i] - ys[i - 1])
