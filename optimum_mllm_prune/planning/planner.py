"""The planner: sizes, selection, exact accounting, and the check that the config can say it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..backbone import TWIN_OF, Backbone, Sizes
from ..backbone.text_config import text_config
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance import Scores
from ..importance.registry import goes_in_a_row, scored_as
from .budget import Budget, budget_of, layers_to_remove, removed_with
from .hidden import hidden_sizes, norm_factors, removed_hidden
from .plan import PruningPlan
from .selection import firsts, layer_order, least_runs, weakest
from .width import width_sizes


@dataclass(frozen=True)
class Account:
    """What a plan will leave, exactly, before any weight is touched.

    Attributes:
        sizes: what the config will say.
        parameters: {"before", "after", "backbone_before", "backbone_after"}.
        ratio: {"requested", "achieved"}.
        config_changes: text config keys to their new values.
        notes: how the sizes were chosen.
    """

    sizes: Sizes
    parameters: dict[str, int]
    ratio: dict[str, float]
    config_changes: dict[str, Any]
    notes: list[str]


def account(backbone: Backbone, config: PruningConfig, scores: Scores | None = None) -> Account:
    """Sizes and parameters from the config alone.

    Args:
        backbone: of the original model.
        config: what is wanted.
        scores: of the model; without, the last layers stand for those that will go, and heads and MLP lose the same
            share where errors were to decide.

    Raises:
        UserInputError: the wish cannot be met.
    """
    budget, (by_layers, by_hidden) = budget_of(backbone, config), config.shares
    sizes, notes = Sizes(tuple(range(backbone.num_layers))), []
    mixed = config.method == "mixed"
    if by_layers:
        with _said_of(f"for layer_share {by_layers:g}", mixed):
            part = budget.part(by_layers) if mixed else budget
            removed, notes = _removed_layers(backbone, config, part, scores)
        sizes = Sizes(tuple(i for i in range(backbone.num_layers) if i not in removed))
    if by_hidden:
        with _said_of(f"for hidden_share {by_hidden:g}", mixed):
            sizes, more = hidden_sizes(backbone, budget.part(by_hidden) if mixed else budget, sizes)
        notes += more
    if by_layers + by_hidden < 1:
        with _said_of(f"by width, after {' and '.join(_gone(backbone, sizes))}", mixed):
            left = budget.without(removed_with(backbone, sizes, budget.whole))
            sizes, more = width_sizes(backbone, config, left, sizes, scores)
        notes += more
    return _accounted(backbone, sizes, notes, round(budget.ratio, 6))


def _gone(backbone: Backbone, sizes: Sizes) -> Iterator[str]:
    layers = backbone.num_layers - len(sizes.kept_layers)
    if layers:
        yield f"{layers} whole layers"
    if sizes.hidden is not None:
        yield f"{backbone.hidden.size - sizes.hidden} dimensions of the hidden size"


@contextmanager
def _said_of(part: str, is_one: bool) -> Iterator[None]:
    """What is wrong in here is told of a part of what was asked for, where it is one."""
    try:
        yield
    except UserInputError as error:
        if not is_one:
            raise
        raise UserInputError(f"{part}: {error}") from error


def _accounted(backbone: Backbone, sizes: Sizes, notes: list[str], requested: float) -> Account:
    left = backbone.expressed(sizes)
    before, after = backbone.backbone_parameters, left.backbone_parameters
    return Account(
        sizes,
        {
            "before": backbone.parameters,
            "after": left.parameters,
            "backbone_before": before,
            "backbone_after": after,
        },
        {"requested": requested, "achieved": round(1 - after / before, 6)},
        _config_changes(backbone, left.config),
        notes,
    )


def checked(plan: PruningPlan, backbone: Backbone) -> PruningPlan:
    """A plan that was read, its figures worked out anew: it may have been edited.

    Raises:
        UserInputError: it does not fit the model.
    """
    made = worked_out(plan, backbone, ["edited by hand: sizes worked out anew"])
    return plan if made.parameters == plan.parameters and made.ratio == plan.ratio else made


def worked_out(plan: PruningPlan, backbone: Backbone, notes: list[str]) -> PruningPlan:
    """A plan with its figures worked out anew from what it removes, and these notes. Raises as `checked`."""
    made = _accounted(backbone, plan.sizes(backbone), notes, plan.ratio.get("requested", 0.0))
    return replace(plan, parameters=made.parameters, ratio=made.ratio, config_changes=made.config_changes, notes=notes)


def make_plan(backbone: Backbone, config: PruningConfig, scores: Scores) -> PruningPlan:
    """The plan for a model and its scores.

    Raises:
        UserInputError: the wish cannot be met, or the scores are of another model, metric or head unit.
    """
    if scores.model != backbone.fingerprint:
        raise UserInputError("the scores were made for another model: calibrate this one.")
    scored = scores.metrics.get(scored_as(config.method))
    if scored != config.importance:
        raise UserInputError(
            f"the scores hold '{scored}' for method '{config.method}', "
            f"not '{config.importance}': name that importance or calibrate again."
        )
    scores = scores.weighted(config.modality_weights)
    backbone = backbone.without(scores.left_out)
    made = account(backbone, config, scores)
    dimensions, inner, factors = _removed_hidden(backbone, scores, made.sizes)
    return PruningPlan(
        method=config.method,
        importance=config.importance,
        model=_model(backbone, config),
        num_layers=backbone.num_layers,
        removed_layers=[i for i in range(backbone.num_layers) if i not in made.sizes.kept_layers],
        head_unit=_head_unit(backbone, made.sizes),
        removed_heads=_removed_units(backbone, scores, "heads", made.sizes.heads),
        removed_channels=_removed_units(backbone, scores, "channels", made.sizes.channels),
        twin=TWIN_OF[text_config(backbone.config).model_type] if made.sizes.twin else None,
        config_changes=made.config_changes,
        parameters=made.parameters,
        ratio=made.ratio,
        notes=[*made.notes, *_weights(config), *_factors_in_words(factors)],
        scores=scores.fingerprint,
        config=config.to_dict(),
        removed_hidden=dimensions,
        removed_projector=inner,
        norm_factors=factors,
    )


def _layer_scores(scores: Scores | None, num_layers: int, in_a_row: bool) -> torch.Tensor:
    """fp32 (layers,), or (layers, layers) where they go in a row; without scores the last layers are the least."""
    if scores is not None:
        return scores.of_runs(num_layers) if in_a_row else scores.of_layers(num_layers)
    last_first = -torch.arange(num_layers, dtype=torch.float32)
    return last_first.unsqueeze(1).expand(-1, num_layers) if in_a_row else last_first


def _weights(config: PruningConfig) -> Iterator[str]:
    if config.modality_weights:
        told = ", ".join(f"{modality} {weight:g}" for modality, weight in config.modality_weights.items())
        yield f"weights of tokens: {told}"


def _removed_layers(
    backbone: Backbone, config: PruningConfig, budget: Budget, scores: Scores | None
) -> tuple[list[int], list[str]]:
    protected = dict(backbone.protected_layers)
    for layer in config.protected_layers or ():
        if not 0 <= layer < backbone.num_layers:
            raise UserInputError(
                f"protected_layers has {layer}, the model's layers are 0 to {backbone.num_layers - 1}."
            )
        protected.setdefault(layer, "asked for")
    if config.merges:
        protected = backbone.unmergeable_layers | protected
    in_a_row = goes_in_a_row(config.importance, config.method)
    by_layer = _layer_scores(scores, backbone.num_layers, in_a_row)
    if in_a_row:
        choices = least_runs(by_layer, backbone.layer_kinds, protected)
    else:
        choices = firsts(layer_order(by_layer, backbone.layer_kinds, protected))
    removed = layers_to_remove(backbone, config, budget, choices)
    notes = [f"layers: {backbone.num_layers} -> {backbone.num_layers - len(removed)}"]
    if protected:
        notes.append(f"protected layers: {', '.join(f'{i} ({why})' for i, why in sorted(protected.items()))}")
    return removed, notes


def _removed_units(backbone: Backbone, scores: Scores, kind: str, kept: int | None) -> dict[str, list[int]]:
    if kept is None:
        return {}
    group = getattr(backbone, kind)
    sets = group.stride
    removed = weakest(scores.of(group), group.units - kept, sets)
    return {site.prefix: units for site, units in zip(group.sites, removed, strict=True)}


def _removed_hidden(
    backbone: Backbone, scores: Scores, sizes: Sizes
) -> tuple[list[int], dict[str, list[int]], dict[str, float]]:
    if sizes.hidden is None:
        return [], {}, {}
    dimensions, inner = removed_hidden(backbone.hidden, scores, sizes.hidden)
    factors = norm_factors(backbone.hidden, scores, dimensions)
    stay = {name: factor for name, factor in factors.items() if backbone.renamed(f"{name}.", sizes.kept_layers)}
    return dimensions, inner, stay


def _factors_in_words(factors: dict[str, float]) -> list[str]:
    if not factors:
        return []
    low, high = min(factors.values()), max(factors.values())
    return [f"norms multiplied by {low:.3f} to {high:.3f}, so that they give what they gave on the calibration rows"]


def _head_unit(backbone: Backbone, sizes: Sizes) -> str:
    if sizes.heads is None:
        return "group"
    return "query" if backbone.heads.unit == "query head" else "group"


def _model(backbone: Backbone, config: PruningConfig) -> dict[str, Any]:
    return {
        "model_type": backbone.config.model_type,
        "class": backbone.model_class.__name__,
        "fingerprint": backbone.fingerprint,
        "base_model": config.base_model,
        "base_model_revision": config.base_model_revision,
    }


def _config_changes(backbone: Backbone, config: Any) -> dict[str, Any]:
    old, new = text_config(backbone.config).to_dict(), text_config(config).to_dict()
    ignored = {"dtype", "transformers_version", "architectures"}
    return {key: value for key, value in new.items() if key not in ignored and old.get(key) != value}
