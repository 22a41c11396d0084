"""Whether a pruned model is repaired, and on which rows."""

from collections.abc import Sequence
from typing import Any

from optimum.utils import logging
from transformers import ProcessorMixin

from ..calibration.rows import load_rows
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..planning import PruningPlan


logger = logging.get_logger("optimum.mllm_prune.repair")


def repair_method(config: PruningConfig) -> str | None:
    """What a config has done where there are rows, "least-squares" or "linear-map"; None where it reads none."""
    if config.merges or config.repair == "none":
        return None
    return "least-squares" if config.repair == "auto" else config.repair


def config_of(plan: PruningPlan) -> PruningConfig:
    """The config that a plan was made by, or the default one."""
    return PruningConfig.from_dict(plan.config) if plan.config else PruningConfig()


def rows_to_repair(
    plan: PruningPlan, processor: ProcessorMixin | None, dataset: Any, offloaded: bool = False
) -> Sequence[Any] | None:
    """The rows to refit on, none for a merge of layers, which needs none; or None where nothing is to be repaired.

    Args:
        plan: whose config says whether, and how many rows.
        processor: reads the rows.
        dataset: as for calibration; None for none.
        offloaded: whether some weights of the model are not in memory, which a repair could not change.

    Raises:
        UserInputError: a repair was asked for by name and there are no rows or no processor, or weights are offloaded;
            or rows cannot be used.
    """
    config = config_of(plan)
    if not config.merges and repair_method(config) is None:
        return None
    if offloaded and (config.merges or config.repair != "auto"):
        raise UserInputError(
            f"repair '{config.repair}' needs all weights in memory, and some are offloaded: use repair 'none', or "
            "load the whole model."
        )
    if config.merges:
        return ()
    if offloaded:
        if dataset is not None:
            logger.warning("Not repaired: some weights are offloaded, and a repair needs them all in memory.")
        return None
    if dataset is None or processor is None:
        if config.repair != "auto":
            raise UserInputError("a repair reads rows: give a dataset (and a processor), or leave the repair out.")
        return None
    return load_rows(dataset, config.dataset_split, config.repair_samples, config.seed)
