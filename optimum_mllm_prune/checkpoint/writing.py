"""Everything of a checkpoint that is written before it is verified."""

import json
import warnings
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin

from ..backbone import is_offloaded
from ..configuration import PruningConfig
from ..importance import Scores
from ..planning import PruningPlan


# A file is put together in memory before it is written.
OFFLOADED_SHARD = "500MB"


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin | None,
    plan: PruningPlan,
    scores: Scores | None,
    max_shard_size: int | str,
) -> None:
    """Write weights, config, processor, plan, and the scores that the plan was made from, where there are any.

    Args:
        folder: exists and is empty.
        model: the pruned model.
        processor: None where there is none.
        plan: what was removed.
        scores: None where they are not known.
        max_shard_size: largest size of one file of weights, as in transformers; of offloaded ones it is 500 MB.
    """
    with warnings.catch_warnings():
        # That a file of offloaded weights must fit into memory: they are small enough.
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, max_shard_size=OFFLOADED_SHARD if is_offloaded(model) else max_shard_size)
    if processor is not None:
        processor.save_pretrained(folder)
    _leave_own_code_behind(folder)
    write_plan(folder, plan, scores)


def write_plan(folder: Path, plan: PruningPlan, scores: Scores | None) -> None:
    """Write the plan, what was wished, and the scores where there are any."""
    PruningConfig.from_dict(plan.config).save_pretrained(folder)
    plan.save(folder)
    if scores is not None:
        scores.save(folder)


def _leave_own_code_behind(folder: Path) -> None:
    """`auto_map` names code in the original's repository, which was not run and does not come along."""
    for file in folder.glob("*config.json"):
        said = json.loads(file.read_text(encoding="utf-8"))
        if said.pop("auto_map", None):
            file.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
