"""Layer by layer, the maps that read what was cut are refitted to the original's output."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..backbone import Backbone, NotExpressibleError
from ..calibration.batches import Modality, batches
from ..calibration.engine import evaluating
from ..calibration.walk import Walk, input_of, output_of
from ..planning import PruningPlan
from .least_squares import Moments, best_ridge, ridge_solution
from .merge import Merge, merge


BATCH_SIZE = 8
# Shares of the mean eigenvalue, from hardly any pull to what the map was, to almost nothing else.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# One row in so many decides whether a refit is kept.
HELD_OUT = 4


@dataclass(frozen=True)
class Refit:
    """One linear map.

    Attributes:
        module: its name in the pruned model.
        before: error on held-out rows as it was cut: sum |Wx - y|^2 / sum |y|^2, y what the original gives.
        after: the same refitted; equal to `before` where it was left alone.
        ridge: share of the mean eigenvalue that pulled it to what it was; None where it was left alone.
    """

    module: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Repair:
    """What was refitted, and on how much.

    Attributes:
        refits: one a map, in the order of the forward pass.
        rows: calibration rows.
        tokens: real tokens in them.
        notes: what a reader should know.
    """

    refits: Sequence[Refit]
    rows: int
    tokens: int
    notes: Sequence[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        changed = [refit for refit in self.refits if refit.ridge is not None]
        return {
            "method": "least-squares",
            "rows": self.rows,
            "tokens": self.tokens,
            "refitted": len(changed),
            "left_alone": [refit.module for refit in self.refits if refit.ridge is None],
            "error_before": _mean(refit.before for refit in self.refits),
            "error_after": _mean(refit.after for refit in self.refits),
            "notes": list(self.notes),
        }


def repair(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    backbone: Backbone,
    plan: PruningPlan,
    processor: ProcessorMixin,
    rows: Sequence[Any],
) -> Repair | Merge:
    """Refit every `o_proj` and `down_proj` of `pruned`, in place and in the order of the forward pass.

    A plan that merges its layers is merged instead; then no row is read.

    Inputs are those of the pruned model so far, targets what the original's map gives at the same tokens, so that what
    one layer errs the next one mends. A map is changed only where that lowers its error on rows that it was not
    fitted to.

    Args:
        original: the whole model.
        pruned: made of it by `plan`; tensors that both share are not changed but replaced.
        backbone: of the original.
        plan: what was removed.
        processor: reads the rows.
        rows: calibration rows, normalized.
    """
    if plan.merges:
        return merge(original, pruned, backbone, plan)
    made = [batch.to(pruned.device, pruned.dtype) for batch in batches(processor, rows, BATCH_SIZE)]
    refits, widest = [], 0
    with evaluating(original), evaluating(pruned), torch.no_grad():
        theirs = Walk(original, original.get_submodule(backbone.layers_prefix), made)
        ours = Walk(pruned, pruned.get_submodule(backbone.layers_prefix), made)
        for layer in tqdm(plan.kept_layers, desc="Repairing", unit="layer"):
            while theirs.layer < layer:
                theirs.advance()
            for name in _readers(backbone, layer):
                own = backbone.renamed(f"{name}.", plan.kept_layers).rstrip(".")
                found = _refitted(theirs, original.get_submodule(name), ours, pruned.get_submodule(own))
                if found is not None:
                    refits.append(Refit(own, *found))
                    widest = max(widest, pruned.get_submodule(own).in_features)
            ours.advance()
    tokens = sum(int((batch.modality != Modality.PADDING).sum()) for batch in made)
    return Repair(refits, len(rows), tokens, list(_notes(len(rows), tokens, widest)))


def _readers(backbone: Backbone, layer: int) -> list[str]:
    """Names in the original of the maps behind a layer's heads and channels, in the order in which they run."""
    found = []
    for kind in ("heads", "channels"):
        with suppress(NotExpressibleError):
            found += [site.reader_module for site in getattr(backbone, kind).sites if site.layer == layer]
    return found


def _refitted(theirs: Walk, target: nn.Module, ours: Walk, map: nn.Module) -> tuple[float, float, float | None] | None:
    """Refit one map; gives the errors and the ridge, or None where it is no plain linear map of every token."""
    if type(map) is not nn.Linear or type(target) is not nn.Linear:
        return None
    constant = map.bias is not None
    moments = [Moments.zeros(map.in_features + constant, map.out_features, map.weight.device) for _ in range(2)]
    row = 0
    for number, batch in enumerate(ours.batches):
        real = batch.modality != Modality.PADDING
        y, x = theirs.see(number, target, output_of), ours.see(number, map, input_of)
        if x.shape[:2] != real.shape or y.shape[:2] != real.shape:
            return None
        for i, here in enumerate(real.to(x.device)):
            held = row % HELD_OUT == HELD_OUT - 1
            moments[held].add(_with_one(x[i][here], constant), y[i].to(x.device)[here])
            row += 1
    if not moments[1].tokens:
        return None
    start = _with_bias(map)
    before = moments[1].error(start)
    ridge, after = best_ridge(*moments, start, RIDGES)
    weight = None if ridge is None else ridge_solution(moments[0] + moments[1], start, ridge)
    if weight is None:
        return before, before, None
    _assign(map, weight)
    return before, after, ridge


def _with_one(x: Tensor, constant: bool) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1) if constant else x


def _with_bias(module: nn.Linear) -> Tensor:
    weight = module.weight.double()
    return weight if module.bias is None else torch.cat([weight, module.bias.double().unsqueeze(1)], dim=1)


def _assign(module: nn.Linear, weight: Tensor) -> None:
    dtype, trains = module.weight.dtype, module.weight.requires_grad
    if module.bias is not None:
        module.bias = nn.Parameter(weight[:, -1].to(dtype).clone(), trains)
        weight = weight[:, :-1]
    module.weight = nn.Parameter(weight.to(dtype).contiguous(), trains)


def _notes(rows: int, tokens: int, widest: int) -> Iterator[str]:
    if tokens * (HELD_OUT - 1) < widest * HELD_OUT:
        needed = -(-widest * HELD_OUT * rows // ((HELD_OUT - 1) * max(tokens, 1)))
        yield f"{rows} rows hold fewer tokens than the widest map has inputs ({widest:,}): give {needed:,} or more"


def _mean(values: Iterator[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
