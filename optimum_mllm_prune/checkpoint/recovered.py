"""What a recovery adds to the report and the card of a pruned checkpoint; everything else stays as it is."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..loading import public_name
from .card import CARD_NAME, rendered
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


def update_report(
    report: Mapping[str, Any], recovery: Mapping[str, Any], verification: Verification, folder: Path
) -> None:
    """Write a checkpoint's report with what its recovery was and what the fresh process has found since.

    Args:
        report: of the pruned checkpoint, as read.
        recovery: a `RecoveryRecord` as a dict.
        verification: of the recovered checkpoint.
        folder: where to write it.
    """
    updated = {**report, "verification": asdict(verification), "recovery": dict(recovery)}
    (folder / REPORT_NAME).write_text(json.dumps(updated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def updated_card(
    text: str, name: str, recovery: Mapping[str, Any], verification: Verification, plot: str | None
) -> ModelCard:
    """A pruned checkpoint's card with the sections on recovery and verification replaced, and the tags to find it by.

    Args:
        text: the card as it is, with whatever anybody has written into it.
        name: what the recovered checkpoint is called.
        recovery: a `RecoveryRecord` as a dict.
        verification: of the recovered checkpoint.
        plot: name of the picture of the losses beside the card; None where there is none.
    """
    text = re.sub(r"^# .+$", f"# {name}", text, count=1, flags=re.MULTILINE)
    what = _TRAINED[recovery["train"]]
    told = rendered("recovery.md.jinja", record=recovery, what=what, names=_TERMS, plot=plot)
    text = with_section(text, "Recovery", told, before="Verification")
    checked = rendered("verification.md.jinja", verification=asdict(verification))
    card = ModelCard(with_section(text, "Verification", checked, before="Limits"))
    tags = ["recovered", *(["knowledge-distillation"] if recovery["teacher"] else [])]
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    return card


def read_report(folder: Path) -> dict[str, Any]:
    """The report beside a checkpoint; empty where there is none."""
    file = folder / REPORT_NAME
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def read_card(folder: Path) -> str:
    """The card beside a checkpoint; a bare one where there is none."""
    file = folder / CARD_NAME
    return file.read_text(encoding="utf-8") if file.is_file() else f"# {public_name(str(folder))}\n"
