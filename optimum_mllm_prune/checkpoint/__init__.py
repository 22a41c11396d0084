"""Atomic saving, verification in a fresh process, report and model card."""

from ..errors import VerificationError
from .atomic import atomic_folder, check_output, free_memory
from .card import CARD_NAME, license_of, model_card
from .floor import product_rate
from .fresh import FreshProcess, fresh_process
from .hub import check_repo_id, save_and_upload, upload
from .report import REPORT_NAME, PruningReport, environment, peak_memory, weight_bytes
from .trial import generation_can_be_compared, trial_inputs
from .verification import (
    Reference,
    Verification,
    auto_class,
    generation_is_consistent,
    reference_of,
    special_tokens,
    verify,
)
from .writing import write_checkpoint, write_plan


__all__ = [
    "CARD_NAME",
    "REPORT_NAME",
    "FreshProcess",
    "PruningReport",
    "Reference",
    "Verification",
    "VerificationError",
    "atomic_folder",
    "auto_class",
    "check_output",
    "check_repo_id",
    "environment",
    "free_memory",
    "fresh_process",
    "generation_can_be_compared",
    "generation_is_consistent",
    "license_of",
    "model_card",
    "peak_memory",
    "product_rate",
    "reference_of",
    "save_and_upload",
    "special_tokens",
    "trial_inputs",
    "upload",
    "verify",
    "weight_bytes",
    "write_checkpoint",
    "write_plan",
]
