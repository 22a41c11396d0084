"""The recovered model becomes a checkpoint: written, verified, and told of in the report and the card it had."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel, ProcessorMixin

from ..backbone import Backbone
from ..checkpoint import (
    CARD_NAME,
    Verification,
    atomic_folder,
    fresh_process,
    reference_of,
    trial_inputs,
    verify,
    write_checkpoint,
)
from ..checkpoint.recovered import read_card, read_report, update_report, updated_card
from ..errors import UserInputError
from ..importance import SCORES_NAME, Scores
from ..planning import PruningPlan
from .plots import PLOT_NAME, plot_losses


ADAPTER_FOLDER = "adapter"


def save_recovered(
    output: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    origin: Path,
    plan: PruningPlan,
    recovery: Mapping[str, Any],
    history: list[dict[str, Any]],
    adapter: Path | None = None,
) -> Verification:
    """Write and verify a recovered checkpoint; all or nothing.

    Args:
        output: folder, which is replaced where it exists.
        model: the plain model, in the number format it is to have.
        processor: its processor.
        origin: folder of the pruned checkpoint, whose scores, report and card go along.
        plan: by which it was pruned.
        recovery: a `RecoveryRecord` as a dict.
        history: Trainer's log.
        adapter: folder of the adapter as peft saved it; None where it is not kept.

    Raises:
        UserInputError: the training has ruined the model.
        VerificationError: the saved checkpoint is not the model in memory; nothing is left behind.
    """
    layers = Backbone.of(model).layers_prefix
    reference = reference_of(model, trial_inputs(model, processor), layers)
    if not reference.logits.isfinite().all():
        raise UserInputError(
            "the trained model's logits are not numbers: delete the training's folder, and lower the learning rate or "
            "train in bfloat16 or float32."
        )
    scores = Scores.load(origin) if (origin / SCORES_NAME).is_file() else None
    with atomic_folder(output) as folder, fresh_process(layers_on_disk=False) as fresh:
        write_checkpoint(folder, model, processor, plan, scores, "5GB")
        verification = verify(folder, reference, has_processor=True, fresh=fresh)
        if adapter is not None:
            (folder / ADAPTER_FOLDER).mkdir()
            for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
                shutil.copy(adapter / name, folder / ADAPTER_FOLDER)
        logged = any("loss" in entry for entry in history)
        if logged:
            plot_losses(history, folder / PLOT_NAME)
        update_report(read_report(origin), recovery, verification, folder)
        card = updated_card(read_card(origin), output.name, recovery, verification, PLOT_NAME if logged else None)
        card.save(folder / CARD_NAME)
        _copy_others(origin, folder)
    return verification


def _copy_others(origin: Path, folder: Path) -> None:
    """Pictures that the card shows, and what a search for the plan has found."""
    card = (folder / CARD_NAME).read_text(encoding="utf-8")
    shown = [picture for picture in origin.glob("*.png") if picture.name in card]
    for other in (*shown, *origin.glob("pruning_search.*")):
        if not (folder / other.name).exists():
            shutil.copy(other, folder)
