"""Whether a pruned model is repaired, and on which rows."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin

from ..calibration.rows import load_rows
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..planning import PruningPlan


def repairs(config: PruningConfig) -> bool:
    """Whether a config asks for a repair where there are rows: where no heads or channels go, it gains nothing."""
    return config.repair == "least-squares" or (config.repair == "auto" and config.method in ("width", "mixed"))


def rows_to_repair(plan: PruningPlan, processor: ProcessorMixin | None, dataset: Any) -> Sequence[Any] | None:
    """The rows to refit on, or None where nothing is to be refitted.

    Args:
        plan: whose config says whether, and how many rows.
        processor: reads the rows.
        dataset: as for calibration; None for none.

    Raises:
        UserInputError: a repair was asked for by name and there are no rows or no processor, or rows cannot be used.
    """
    config = PruningConfig.from_dict(plan.config) if plan.config else PruningConfig()
    if not repairs(config):
        return None
    if dataset is None or processor is None:
        if config.repair == "least-squares":
            raise UserInputError("a repair reads rows: give a dataset (and a processor), or leave the repair out.")
        return None
    return load_rows(dataset, config.dataset_split, config.repair_samples, config.seed)
