"""The search itself: one calibration, every plan carried out for a look, scored on rows that it was not made from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbone import Sizes, refuse_offloaded
from ..checkpoint import free_memory
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..evaluation.efficiency import Loaded, measure_efficiency
from ..evaluation.likelihood import answer_likelihoods
from ..evaluation.metrics import METRICS
from ..evaluation.predictions import PERPLEXITY, Predictions
from ..evaluation.statistics import Interval, bootstrap_interval
from ..loading import with_origin
from ..pruner import MLLMPruner
from ..repair import repair, rows_to_repair
from ..surgery import pruned_model
from .proposals import proposals, to_be_scored
from .result import Search, Tried


BATCH_SIZE = 8
# Enough for a ratio of medians, little beside the scoring of a real model.
_NEW_TOKENS, _REPEATS = 16, 3
_OTHER_FORMAT = "load the model with dtype bfloat16 or float32"


def search(
    pruner: MLLMPruner,
    config: PruningConfig,
    rows: Sequence[Any],
    held_out: Sequence[Any],
    meets: Callable[[Sizes, int], bool] | None = None,
    measure_speed: bool = True,
    repair_rows: Sequence[Any] | None = None,
) -> Search:
    """Try plans of layers, of width and of mixtures at the size that `config` asks for. Touches no weight.

    Each is carried out on the side: what it cuts is copied, one plan at a time, what it leaves whole is shared with
    the original. It is scored by the perplexity of right answers, without any training.

    Args:
        pruner: with its original model and a processor.
        config: size, importance and seed; of any method with a metric for width.
        rows: to calibrate on, once.
        held_out: other rows, to score on.
        meets: whether sizes, and the parameters that they leave, are small enough; None asks for the config's size.
        measure_speed: also time each plan against the original, at batch 1.
        repair_rows: to refit each plan's maps on before it is scored, where `config` asks for a repair; None for none.

    Raises:
        UserInputError: there is no processor, weights are offloaded, there is no row, no plan meets the size, or
            answers cannot be scored in the model's number format.
    """
    if pruner.processor is None:
        raise UserInputError("a search reads rows: give MLLMPruner a processor.")
    refuse_offloaded(pruner.model, "a search")
    if not held_out:
        raise UserInputError("no row is left to score plans on: give more rows, or calibrate on fewer.")
    backbone = pruner.backbone(config.head_unit)
    scores = pruner.score(to_be_scored(backbone, config), rows)
    config = with_origin(config, pruner.base_model, pruner.base_model_revision, rows)
    found, refused = proposals(backbone, config, scores, meets)
    original = _perplexity(pruner.model, pruner, held_out, config.seed)
    if not math.isfinite(original.value):
        raise UserInputError(f"the perplexity of the model itself is not finite: {_OTHER_FORMAT}.")
    tried = []
    for proposal in tqdm(found, desc="Trying plans", unit="plan"):
        model = pruned_model(pruner.model, backbone.without(scores.left_out), proposal.plan, keep_original=True)
        mending = rows_to_repair(proposal.plan, pruner.processor, repair_rows)
        if mending is not None:
            repair(pruner.model, model, backbone, proposal.plan, pruner.processor, mending)
        perplexity = _perplexity(model, pruner, held_out, config.seed)
        if math.isfinite(perplexity.value):
            speeds = _speedups(model, pruner) if measure_speed else (None, None)
            tried.append(Tried(proposal.name, proposal.plan, perplexity, *speeds))
        else:
            refused.append(f"{proposal.name}: its perplexity is not finite")
        del model
        free_memory()
    if not tried:
        raise UserInputError(f"the perplexity of no plan is finite: ask for less, or {_OTHER_FORMAT}.")
    ranked = sorted(tried, key=lambda one: one.perplexity.value)
    return Search([_noted(ranked[0], tried, len(held_out)), *ranked[1:]], original, len(held_out), refused)


def _speedups(model: PreTrainedModel, pruner: MLLMPruner) -> tuple[float | None, float | None]:
    """Of prefill and decoding over the original; None where they cannot be timed, as by a window of few positions."""
    both = {"original": Loaded(pruner.model, pruner.processor), "pruned": Loaded(model, pruner.processor)}
    try:
        found = measure_efficiency(both, (1,), _NEW_TOKENS, _REPEATS)["pruned"].speedup[1]
    except UserInputError:
        return None, None
    return (None, None) if found is None else (found.prefill.measured, found.decode.measured)


def _perplexity(model: PreTrainedModel, pruner: MLLMPruner, rows: Sequence[Any], seed: int) -> Interval:
    """NaN where a loss is not finite."""
    said = Predictions(likelihoods=answer_likelihoods(model, pruner.processor, rows, BATCH_SIZE))
    if not all(math.isfinite(row.nats) for row in said.likelihoods):
        return Interval(math.nan, math.nan, math.nan, 0.95)
    metric = METRICS[PERPLEXITY]()
    return bootstrap_interval(metric.contributions(*said.inputs_of(PERPLEXITY, [], None)), metric.value, seed=seed)


def _noted(best: Tried, tried: Sequence[Tried], rows: int) -> Tried:
    """The best one, whose plan says why it was taken."""
    others = max(one.perplexity.value for one in tried)
    note = (
        f"chosen among {len(tried)} plans of this size by the perplexity of answers on {rows} held-out rows: "
        f"{best.perplexity.value:.3f}, the worst {others:.3f}"
    )
    return replace(best, plan=replace(best.plan, notes=[*best.plan.notes, note]))
