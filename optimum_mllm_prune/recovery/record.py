"""What is told of a recovery: in the report, in the card and on the screen."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RecoveryRecord:
    """One training, in plain data.

    Attributes:
        loss: as it was asked for.
        weights: of the terms.
        settings: those of the losses that are not at their default.
        train: "projector", "lora" or "full".
        trained_parameters: how many trained.
        all_parameters: how many there are, adapters included.
        teacher: Hub id or name of the unpruned model; None where no term asked.
        cached: whether the teacher came from a cache.
        dataset: Hub id or name of the rows.
        rows: rows trained on.
        rows_available: rows there were.
        stratify_by: column by which they were drawn.
        seed: of the draw and of the training.
        epochs: passes over the rows.
        steps: optimiser steps.
        batch_size: rows a step, over all processes.
        processes: how many took part.
        learning_rate: peak.
        projector_learning_rate: where it was another.
        first: terms of the loss as first logged.
        last: terms as last logged.
        seconds: wall-clock time of the training since it was last resumed.
        command: the command line, where there was one.
        versions: of the packages that took part.
    """

    loss: str
    weights: dict[str, float]
    settings: dict[str, Any]
    train: str
    trained_parameters: int
    all_parameters: int
    teacher: str | None
    cached: bool
    dataset: str
    rows: int
    rows_available: int
    stratify_by: str | None
    seed: int
    epochs: float
    steps: int
    batch_size: int
    processes: int
    learning_rate: float
    projector_learning_rate: float | None
    first: dict[str, float]
    last: dict[str, float]
    seconds: float
    command: str | None
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def terms_at(history: list[dict[str, Any]], index: int) -> dict[str, float]:
    """Terms of the loss at one entry of Trainer's log, rounded; empty where nothing was logged."""
    logged = [entry for entry in history if "loss" in entry]
    if not logged:
        return {}
    return {key: round(value, 5) for key, value in logged[index].items() if key.startswith("loss")}
