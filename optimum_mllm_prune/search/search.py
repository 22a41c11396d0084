"""The search itself: one calibration, every plan carried out for a look, scored on rows that it was not made from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils.memory import clear_device_cache
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..backbone import Sizes
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..evaluation.efficiency import Loaded, measure_efficiency
from ..evaluation.likelihood import answer_likelihoods
from ..evaluation.metrics import METRICS
from ..evaluation.predictions import PERPLEXITY, Predictions
from ..evaluation.statistics import Interval, bootstrap_interval
from ..loading import with_origin
from ..pruner import MLLMPruner
from ..surgery import pruned_model
from .proposals import Proposal, proposals
from .result import Search, Tried


BATCH_SIZE = 8
# Enough for a ratio of medians, little beside the scoring of a real model.
_NEW_TOKENS, _REPEATS = 16, 3


def search(
    pruner: MLLMPruner,
    config: PruningConfig,
    rows: Sequence[Any],
    held_out: Sequence[Any],
    meets: Callable[[Sizes, int], bool] | None = None,
    measure_speed: bool = True,
) -> Search:
    """Try plans of layers, of width and of both at the size that `config` asks for. Touches no weight.

    Each is carried out on the side: what it cuts is copied, one plan at a time, what it leaves whole is shared with
    the original. It is scored by the perplexity of right answers, without any training.

    Args:
        pruner: with its original model and a processor.
        config: size, importance and seed; of any method with a metric for width.
        rows: to calibrate on, once.
        held_out: other rows, to score on.
        meets: whether sizes, and the parameters that they leave, are small enough; None takes them as they are.
        measure_speed: also time each plan against the original, at batch 1.

    Raises:
        UserInputError: there is no processor, no row, or no plan that meets the size.
    """
    if pruner.processor is None:
        raise UserInputError("a search reads rows: give MLLMPruner a processor.")
    if not held_out:
        raise UserInputError("no row is left to score plans on: give more rows, or calibrate on fewer.")
    scores = pruner.score(config, rows)
    backbone = pruner.backbone(config.head_unit)
    config = with_origin(config, pruner.base_model, pruner.base_model_revision, rows)
    found, refused = proposals(backbone, config, scores, meets)
    original = _perplexity(pruner.model, pruner, held_out, config.seed)
    tried = []
    for proposal in tqdm(found, desc="Trying plans", unit="plan"):
        model = pruned_model(pruner.model, backbone.without(scores.left_out), proposal.plan, keep_original=True)
        tried.append(_tried(proposal, model, pruner, held_out, config.seed, measure_speed))
        del model
        clear_device_cache(garbage_collection=True)
    ranked = sorted(tried, key=lambda one: one.perplexity.value)
    return Search([_noted(ranked[0], tried, len(held_out)), *ranked[1:]], original, len(held_out), refused)


def _tried(
    proposal: Proposal,
    model: PreTrainedModel,
    pruner: MLLMPruner,
    held_out: Sequence[Any],
    seed: int,
    measure_speed: bool,
) -> Tried:
    perplexity = _perplexity(model, pruner, held_out, seed)
    speedup = None
    if measure_speed:
        both = {"original": Loaded(pruner.model, pruner.processor), "pruned": Loaded(model, pruner.processor)}
        speedup = measure_efficiency(both, (1,), _NEW_TOKENS, _REPEATS)["pruned"].speedup[1]
    return Tried(
        proposal.name,
        proposal.plan,
        perplexity,
        None if speedup is None else speedup.prefill.measured,
        None if speedup is None else speedup.decode.measured,
    )


def _perplexity(model: PreTrainedModel, pruner: MLLMPruner, rows: Sequence[Any], seed: int) -> Interval:
    said = Predictions(likelihoods=answer_likelihoods(model, pruner.processor, rows, BATCH_SIZE))
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
