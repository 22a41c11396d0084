"""What a repair has done: plain data for the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Refit:
    """Linear maps that read the same, fitted together.

    Attributes:
        modules: their names in the pruned model.
        before: error on held-out rows as it was cut: sum |Wx - y|^2 / sum |y|^2, y what they should give.
        after: the same refitted; equal to `before` where they were left alone.
        ridge: share of the mean eigenvalue that pulled them to what they were; None where they were left alone.
    """

    modules: tuple[str, ...]
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Repair:
    """What was refitted, and on how much.

    Attributes:
        method: "least-squares" or "linear-map".
        refits: of all maps, in the order of the forward pass.
        rows: calibration rows.
        tokens: real tokens in them.
        loss_before: mean cross entropy of the answers of the rows that decide, as it was cut, in nats a token; None
            where there are too few rows to decide anything.
        loss_after: the same in the end.
        notes: what a reader should know.
    """

    method: str
    refits: Sequence[Refit]
    rows: int
    tokens: int
    loss_before: float | None
    loss_after: float | None
    notes: Sequence[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        changed, alone = (
            [name for refit in self.refits if (refit.ridge is None) == unchanged for name in refit.modules]
            for unchanged in (False, True)
        )
        return {
            "method": self.method,
            "rows": self.rows,
            "tokens": self.tokens,
            "refitted": len(changed),
            "left_alone": alone,
            "error_before": _mean(refit.before for refit in self.refits),
            "error_after": _mean(refit.after for refit in self.refits),
            "answer_loss_before": self.loss_before,
            "answer_loss_after": self.loss_after,
            "notes": list(self.notes),
        }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
