"""How a model's weights must be held for a metric: all in memory, or in formats that can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..backbone import is_offloaded, is_quantized, refuse_offloaded
from ..errors import UserInputError
from .registry import METRICS, metrics_for, scored_as


if TYPE_CHECKING:
    from ..configuration import PruningConfig


def refuse_held_otherwise(model: PreTrainedModel, config: PruningConfig) -> None:
    """Raise UserInputError where the metric wants weights that are offloaded, or looks at those that are quantized."""
    scored = scored_as(config.method)
    if is_offloaded(model):
        _refuse_passes(config.importance, scored)
        if config.shares[1] > 0 and scored != "hidden":
            refuse_offloaded(model, "hidden_share")
    if is_quantized(model):
        _refuse_few_bits(config, scored)


def _refuse_passes(importance: str, scored: str) -> None:
    if not METRICS[importance][scored].takes_offloaded:
        able = [name for name in metrics_for(scored) if METRICS[name][scored].takes_offloaded]
        raise UserInputError(
            f"importance '{importance}' needs all weights in memory, and some are offloaded: use one of "
            f"{', '.join(able)}, or load the whole model."
        )


def _refuse_few_bits(config: PruningConfig, scored: str) -> None:
    if scored == "hidden" or config.shares[1] > 0:
        raise UserInputError("the hidden size cannot be scored on a quantized model: load it without a quantization.")
    if not METRICS[config.importance][scored].blind_to_weights:
        able = [name for name in metrics_for(scored) if METRICS[name][scored].blind_to_weights]
        raise UserInputError(
            f"importance '{config.importance}' looks at weights, which this model holds in a few bits: use one of "
            f"{', '.join(able)}, or load it without a quantization."
        )
