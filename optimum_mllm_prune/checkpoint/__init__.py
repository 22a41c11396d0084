"""Atomic saving, verification in a fresh process, report and model card."""

from .atomic import atomic_folder, check_output
from .card import CARD_NAME, license_of, model_card
from .hub import upload
from .report import REPORT_NAME, PruningReport, environment, peak_memory, weight_bytes
from .verification import (
    Reference,
    Verification,
    VerificationError,
    auto_class,
    generation_is_consistent,
    reference_of,
    special_tokens,
    verify,
)


__all__ = [
    "CARD_NAME",
    "REPORT_NAME",
    "PruningReport",
    "Reference",
    "Verification",
    "VerificationError",
    "atomic_folder",
    "auto_class",
    "check_output",
    "environment",
    "generation_is_consistent",
    "license_of",
    "model_card",
    "peak_memory",
    "reference_of",
    "special_tokens",
    "upload",
    "verify",
    "weight_bytes",
]
