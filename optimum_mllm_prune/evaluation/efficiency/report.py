"""`EfficiencyReport`: what a model costs, as figures."""

from dataclasses import asdict, dataclass
from typing import Any

from .comparison import Comparison
from .cost import Cost
from .memory import Memory
from .size import Size
from .speed import Speed


@dataclass(frozen=True)
class EfficiencyReport:
    """The figures of one model.

    Attributes:
        name: of the model.
        baseline: name of the model that it is compared with; None for that model itself.
        inputs: "image + text" or "text".
        new_tokens: tokens generated a row.
        size: parameters and bytes.
        cost: operations and bytes that a run takes at the least.
        speed: by batch size; None where memory did not suffice.
        speedup: over the baseline, by batch size; None where one of the two was not timed; empty for the baseline.
        memory: None where it is not known, which `notes` explain.
        notes: what is missing and why.
        environment: versions and machine, no names.
    """

    name: str
    baseline: str | None
    inputs: str
    new_tokens: int
    size: Size
    cost: Cost
    speed: dict[int, Speed | None]
    speedup: dict[int, Comparison | None]
    memory: Memory | None
    notes: list[str]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: keys that are numbers become text, every speed-up has its `share` of the ideal."""
        found = _with_text_keys(asdict(self))
        for batch_size, compared in self.speedup.items():
            if compared is not None:
                for phase in ("prefill", "decode"):
                    found["speedup"][str(batch_size)][phase]["share"] = getattr(compared, phase).share
        return found


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return value
