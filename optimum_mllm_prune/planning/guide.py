"""The paper's decision guide: method and recovery for a ratio and a training budget, with the figures that say so.

Huang et al., arXiv 2507.20749 and 2604.24380. What is advised can be overridden by whoever asks.
"""

from dataclasses import dataclass

from ..configuration import AUTO
from ..errors import UserInputError
from ..importance.registry import default_metric
from .retention import (
    BEST,
    FEW_DATA,
    MODELS,
    PERCENTS,
    PROJECTOR,
    SOURCE,
    UNTRAINED,
    WIDTH_BY_LOSS,
    WIDTH_FROM,
    Curve,
    Retained,
    expected,
    range_at,
    whole_percent,
)


BUDGETS = ("none", "projector", "lora", "full")
SMALL, ALL_DATA_FROM, TOO_MUCH = 15, 50, 60
LEARNING_RATE = 4e-5
# The paper's smallest share of the data, and how many rows that are of LLaVA-1.5's 665,000 (arXiv 2310.03744).
FEW = 0.05
FEW_ROWS = 33_250


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    Attributes:
        method: "layer" or "width".
        importance: name of the metric.
        head_share: how heads and MLP channels share what goes by width ("auto"); None for layers.
        recovery: what to train: "none", "projector" or "lora".
        loss: to train with; None where nothing is trained.
        learning_rate: the same.
        fraction: share of the rows to train on; the same.
        retained: what the paper's models kept so, other models than this one; None where it has no figures.
        why: sentences with the figures they rest on, and where those are from.
        warnings: sentences on what the figures advise against.
    """

    method: str
    importance: str
    head_share: str | None
    recovery: str
    loss: str | None
    learning_rate: float | None
    fraction: float | None
    retained: Retained | None
    why: tuple[str, ...]
    warnings: tuple[str, ...]


def advise(ratio: float, recover: str = "none", rows: int | None = None) -> Advice:
    """What the paper's figures advise.

    Args:
        ratio: share of the language backbone that is to go, in (0, 1); compared in whole percent.
        recover: the most that may be trained: "none", "projector", "lora" or "full".
        rows: rows there are to train on, where known.

    Raises:
        UserInputError: a value is out of range.
    """
    _check(ratio, recover, rows)
    percent = whole_percent(ratio)
    recovery = _recovery(percent, recover)
    method = _method(percent, recovery)
    trains = recovery != "none"
    return Advice(
        method=method,
        importance=default_metric(method),
        head_share=AUTO if method == "width" else None,
        recovery=recovery,
        loss="sft+hidden" if trains else None,
        learning_rate=LEARNING_RATE if trains else None,
        fraction=_fraction(percent, rows) if trains else None,
        retained=expected(ratio, method, recovery),
        why=tuple(_why(percent, recover, recovery, rows)),
        warnings=tuple(_warnings(percent, recover, recovery)),
    )


def _check(ratio: float, recover: str, rows: int | None) -> None:
    if not 0 < ratio < 1:
        raise UserInputError(f"ratio must lie between 0 and 1 (0.15 removes 15 %), got {ratio}.")
    if recover not in BUDGETS:
        raise UserInputError(f"unknown recover '{recover}': use one of {', '.join(BUDGETS)}.")
    if rows is not None and rows < 1:
        raise UserInputError(f"rows must be at least 1, got {rows}.")


def _recovery(percent: int, recover: str) -> str:
    """The least training that suffices, of what may be trained."""
    if recover == "none":
        return "none"
    return "projector" if recover == "projector" or percent <= SMALL else "lora"


def _method(percent: int, recovery: str) -> str:
    """With the projector alone, width is at no ratio ahead by more than the figures' half a point."""
    if recovery == "none":
        return "width"
    return "layer" if recovery == "projector" or percent < WIDTH_FROM else "width"


def _fraction(percent: int, rows: int | None) -> float:
    """As many rows as the paper's smallest share had, where its figures say that those suffice; all otherwise."""
    if percent >= ALL_DATA_FROM or rows is None or rows <= FEW_ROWS:
        return 1.0
    return max(FEW, round(FEW_ROWS / rows, 3))


def _why(percent: int, recover: str, recovery: str, rows: int | None) -> list[str]:
    llava = MODELS[0]
    if recovery == "none":
        said = [
            f"Without training, width kept {_kept(percent, *UNTRAINED['width'])}, "
            f"layers {_kept(percent, *UNTRAINED['layer'])} ({', '.join(MODELS)})."
        ]
    elif recovery == "projector":
        said = [
            f"With the projector trained alone, layers kept {_kept(percent, *PROJECTOR['layer'])}, "
            f"width {_kept(percent, *PROJECTOR['width'])} ({llava})."
        ]
        if recover != "projector":
            said.append(f"With adapters in the backbone too, layers kept {_kept(percent, BEST[0])} ({llava}).")
    else:
        said = [
            f"The best recipe, adapters and projector trained, kept {_kept(percent, *BEST)} ({', '.join(MODELS)}): "
            f"layers up to 30 %, width from {WIDTH_FROM} % up.",
            f"Of the losses, by width, cross entropy with hidden states kept "
            f"{_kept(percent, WIDTH_BY_LOSS['sft+hidden'])}, cross entropy alone "
            f"{_kept(percent, WIDTH_BY_LOSS['sft'])}, logits alone {_kept(percent, WIDTH_BY_LOSS['kd'])} ({llava}).",
        ]
    if recovery != "none":
        said.append(_of_the_rows(percent, rows))
    return [*said, f"Figures: {SOURCE}; percent of the original's mean over nine benchmarks."]


def _of_the_rows(percent: int, rows: int | None) -> str:
    few = f"{100 * FEW:.0f} % of the data reached {_kept(percent, FEW_DATA)} of what all the data did"
    if percent >= ALL_DATA_FROM:
        return f"All rows: {few}."
    if rows is None or rows <= FEW_ROWS:
        return f"All rows unless they are many: {few}, but of LLaVA-1.5's data those are {FEW_ROWS:,} rows."
    return f"A part of the rows: {few}."


def _warnings(percent: int, recover: str, recovery: str) -> list[str]:
    said = []
    if percent > TOO_MUCH:
        said.append(f"Over {TOO_MUCH} % is not recommended: the best recipe kept {_kept(TOO_MUCH, *BEST)}.")
    if percent > SMALL and recovery == "none":
        said.append(
            f"Beyond {SMALL} % train afterwards: width kept {_kept(percent, *UNTRAINED['width'])} without training, "
            f"the best recipe {_kept(percent, *BEST)} with it."
        )
    if percent > SMALL and recovery == "projector":
        said.append(
            f"Beyond {SMALL} % the projector alone falls behind: layers kept {_kept(percent, *PROJECTOR['layer'])}, "
            f"the best recipe with adapters {_kept(percent, BEST[0])} ({MODELS[0]}); train 'lora' instead."
        )
    if percent >= ALL_DATA_FROM and recovery != "none":
        said.append(f"From {ALL_DATA_FROM} % up train on all the data there are.")
    if recover == "full":
        said.append("The paper trained adapters in the backbone: of a backbone trained in full it has no figures.")
    return said


def _kept(percent: int, *curves: Curve) -> str:
    """What some curves say at the paper's own ratios next to a percentage, in words."""
    below = max((p for p in PERCENTS if p <= percent), default=PERCENTS[0])
    above = min((p for p in PERCENTS if p >= percent), default=PERCENTS[-1])
    return " and ".join(f"{range_at(curves, p)} at {p} %" for p in dict.fromkeys((below, above)))
