"""What a recovery adds to the report and the card of a pruned checkpoint; everything else stays as it is."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from ..errors import UserInputError, first_line
from ..loading import public_name
from ..quiet import quiet
from .card import CARD_NAME, rendered
from .discretion import discreet
from .report import REPORT_NAME
from .sections import with_section
from .verification import Verification


_TRAINED = {
    "projector": "the projector was",
    "lora": "low-rank adapters in the backbone (merged here) and the projector were",
    "full": "backbone and projector were",
}
_TERMS = {
    "sft": "cross entropy of the answers",
    "logits": "divergence from the teacher's logits",
    "hidden": "distance from the teacher's final hidden states",
    "layers": "distance from the teacher's layers",
}
_NOT_EVALUATED = "Neither quality nor speed has been measured since the recovery."


def update_report(
    report: Mapping[str, Any], recovery: Mapping[str, Any], verification: Verification, folder: Path
) -> None:
    """Write a checkpoint's report with what its recovery was and what the fresh process has found since.

    An evaluation goes: it was of the model before.

    Args:
        report: of the pruned checkpoint, as read.
        recovery: a `RecoveryRecord` as a dict.
        verification: of the recovered checkpoint.
        folder: where to write it.
    """
    kept = {key: value for key, value in report.items() if key != "evaluation"}
    updated = {**kept, "verification": asdict(verification), "recovery": discreet(dict(recovery))}
    (folder / REPORT_NAME).write_text(json.dumps(updated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def updated_card(
    text: str, name: str, recovery: Mapping[str, Any], verification: Verification, plot: str | None
) -> ModelCard:
    """A pruned checkpoint's card with the sections on recovery and verification replaced, and the tags to find it by.

    Its evaluation goes, also from the metadata: it was of the model before.

    Args:
        text: the card as it is, with whatever anybody has written into it.
        name: what the recovered checkpoint is called.
        recovery: a `RecoveryRecord` as a dict.
        verification: of the recovered checkpoint.
        plot: name of the picture of the losses beside the card; None where there is none.

    Raises:
        UserInputError: the card's metadata cannot be read.
    """
    card = opened_card(text, name)
    what = _TRAINED[recovery["train"]]
    told = rendered("recovery.md.jinja", record=dict(recovery), what=what, names=_TERMS, plot=plot)
    checked = rendered("verification.md.jinja", verification=asdict(verification))
    body = re.sub(r"^# .+$", lambda _: f"# {name}", card.text, count=1, flags=re.MULTILINE)
    for heading, section in (("Recovery", told), ("Evaluation", _NOT_EVALUATED), ("Verification", checked)):
        body = with_section(body, heading, section)
    card.text = body
    tags = ["recovered", *(["knowledge-distillation"] if recovery["teacher"] else [])]
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    card.data.eval_results = card.data.model_name = None
    return card


def read_report(folder: Path) -> dict[str, Any]:
    """The report beside a checkpoint; empty where there is none. Raises UserInputError where it cannot be read."""
    file = folder / REPORT_NAME
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserInputError(
            f"the report '{file.name}' is not JSON ({first_line(error)}): mend or remove it."
        ) from error
    if not isinstance(found, dict):
        raise UserInputError(f"the report '{file.name}' is no JSON object: mend or remove it.")
    return found


def read_card(folder: Path) -> str:
    """The card beside a checkpoint; a bare one where there is none."""
    file = folder / CARD_NAME
    return file.read_text(encoding="utf-8-sig") if file.is_file() else f"# {public_name(str(folder))}\n"


def opened_card(text: str, name: str) -> ModelCard:
    """A card's text with its metadata read. Raises UserInputError, calling it `name`, where they cannot be."""
    try:
        with quiet():
            return ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserInputError(
            f"the metadata at the top of the card of '{name}' cannot be read ({first_line(error)}): mend the card."
        ) from error
