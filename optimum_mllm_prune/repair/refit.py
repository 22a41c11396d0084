"""Layer by layer, the maps that are left are refitted to what the original gives."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from ..backbone import Backbone, NotExpressibleError
from ..calibration.batches import Batch, Modality, batches
from ..calibration.engine import evaluating
from ..calibration.walk import Walk, input_of, output_of
from ..planning import PruningPlan
from .judge import Judge, likelier, surely_less_likely
from .least_squares import Fit, best_fit
from .maps import Pair, assign, moments_of, with_bias
from .merge import Merge, merge
from .result import Refit, Repair
from .rows import config_of, repair_method
from .stream import share_in_stream


BATCH_SIZE = 8
# One row in so many is not fitted to: it decides how much a map may change, and whether the repair is kept.
HELD_OUT = 4
TINY = torch.finfo(torch.float32).tiny
LEAST_SQUARES, LINEAR_MAP = "least-squares", "linear-map"


def repair(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    backbone: Backbone,
    plan: PruningPlan,
    processor: ProcessorMixin,
    rows: Sequence[Any],
    method: str | None = None,
) -> Repair | Merge:
    """Refit maps of `pruned`, in place and in the order of the forward pass.

    Inputs are always those of the pruned model so far, so that what one layer errs the next one mends. Where units
    went, every `o_proj` and `down_proj` is fitted to what the original's gives at the same tokens. Where layers went,
    the `down_proj` before them is fitted to what the stream is after them in the original. A map is changed only where
    that lowers its error on rows that it was not fitted to, and before removed layers only where it makes the answers
    of these likelier; all is undone should they surely be less likely in the end. A plan that merges its layers is
    merged instead; then no row is read.

    Args:
        original: the whole model.
        pruned: made of it by `plan`; tensors that both share are not changed but replaced.
        backbone: of the original.
        plan: what was removed.
        processor: reads the rows.
        rows: calibration rows, normalized.
        method: "least-squares", or "linear-map": only the output of the `down_proj` before removed layers is mapped
            once more, which is folded into its weight (Shopkhoev et al., ReplaceMe, arXiv 2505.02819, equation 4). By
            default what the plan's config asks for.
    """
    if plan.merges:
        return merge(original, pruned, backbone, plan)
    method = method or repair_method(config_of(plan))
    rows = list(rows)
    held_out = rows[HELD_OUT - 1 :: HELD_OUT]
    fit = [row for place, row in enumerate(rows) if place % HELD_OUT != HELD_OUT - 1]
    made = [_batches(pruned, processor, some) for some in (fit, held_out)]
    with evaluating(original), evaluating(pruned), torch.no_grad():
        walks = _Walks(original, pruned, backbone, plan, *made)
        first = walks.judge.losses()
        for layer in tqdm(plan.kept_layers, desc="Repairing", unit="layer"):
            walks.mend(layer, method)
        last = walks.kept(first)
    before, after = walks.judge.by_token(first), walks.judge.by_token(last)
    tokens = sum(int((batch.modality != Modality.PADDING).sum()) for batch in walks.made)
    widest = max((pruned.get_submodule(refit.module).in_features for refit in walks.refits), default=0)
    notes = [*walks.notes, *_too_few(len(rows), tokens, widest)]
    return Repair(method, walks.refits, len(rows), tokens, before, after, notes)


def _batches(model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[Any]) -> list[Batch]:
    return [batch.to(model.device, model.dtype) for batch in batches(processor, rows, BATCH_SIZE)]


class _Walks:
    """Both models, walked through side by side, and what has been done on the way."""

    def __init__(
        self,
        original: PreTrainedModel,
        pruned: PreTrainedModel,
        backbone: Backbone,
        plan: PruningPlan,
        fit: Sequence[Batch],
        held_out: Sequence[Batch],
    ) -> None:
        self.original, self.pruned, self.backbone, self.plan = original, pruned, backbone, plan
        self.made, self.first_held_out = [*fit, *held_out], len(fit)
        self.theirs = Walk(original, original.get_submodule(backbone.layers_prefix), self.made)
        self.ours = Walk(pruned, pruned.get_submodule(backbone.layers_prefix), self.made)
        self.judge = Judge(pruned, held_out)
        self.by_modality = config_of(plan).modality_weights
        self.refits: list[Refit] = []
        self.notes: list[str] = []
        self._replaced: list[tuple[nn.Linear, nn.Parameter, nn.Parameter | None]] = []

    def mend(self, layer: int, method: str) -> None:
        """Refit the maps of a kept layer, and go on to the next one."""
        while self.theirs.layer < layer:
            self.theirs.advance()
        after = self._next_kept(layer)
        readers = list(self._readers(layer))
        for kind, name in readers:
            before_gap = kind == "channels" and after > layer + 1
            if before_gap or (method == LEAST_SQUARES and self._by_width):
                self._refit(name, after if before_gap else None, method, last=name == readers[-1][1])
        self.ours.advance()

    def kept(self, first: Tensor) -> Tensor:
        """Losses of the answers in the end, `first` before; all is as it was cut should they surely be less likely."""
        last = self.judge.losses()
        if not surely_less_likely(first, last):
            return last
        for map, weight, bias in reversed(self._replaced):
            _restore(map, weight, bias)
        self.refits = [replace(refit, after=refit.before, ridge=None) for refit in self.refits]
        self.notes.append("left as it was cut: repaired, it gave the answers of held-out rows a lower likelihood")
        return first

    def _refit(self, name: str, after: int | None, method: str, last: bool) -> None:
        """Refit one map, the last of its layer or not: to the stream before the original's layer `after`, or else to
        the original's own map."""
        own = self.backbone.renamed(f"{name}.", self.plan.kept_layers).rstrip(".")
        map, target = self.pruned.get_submodule(own), self.original.get_submodule(name)
        if type(map) is not nn.Linear or type(target) is not nn.Linear:
            return
        share = None if after is None else share_in_stream(self.ours, map)
        if after is not None and share is None:
            self.notes.append(
                f"{own} is not fitted to the layers removed after it: it is not simply added to the stream"
            )
            if method == LINEAR_MAP or not self._by_width:
                return
        folded = share is not None and method == LINEAR_MAP
        pair = self._to_map(map, target, last) if share is None else self._to_stream(map, after, share, folded)
        if not self._by_token(pair):
            return
        start = with_bias(map)
        unchanged = torch.eye(map.out_features).to(start) if folded else start
        fitted, held_out = moments_of(self.made, self.first_held_out, pair, unchanged, self.by_modality)
        before, fit = held_out.error(), best_fit(fitted, held_out)
        if fit is not None and not self._changed(map, fit, unchanged, start if folded else None, share is not None):
            fit = None
        self.refits.append(Refit(own, before, fit.error if fit else before, fit.ridge if fit else None))

    def _changed(self, map: nn.Linear, fit: Fit, unchanged: Tensor, folded_into: Tensor | None, judged: bool) -> bool:
        """Give a map its new weight; where the answers decide, only if that makes them likelier."""
        losses = self.judge.losses() if judged else None
        old = (map, map.weight, map.bias)
        weight = (unchanged + fit.change).float()
        assign(map, weight if folded_into is None else weight @ folded_into)
        if losses is not None and not likelier(losses, self.judge.losses()):
            _restore(*old)
            return False
        self._replaced.append(old)
        return True

    def _to_map(self, map: nn.Linear, target: nn.Linear, last: bool) -> Pair:
        """What the original's map gives; with the last of a layer what the layer gives is known as well."""

        def pair(number: int) -> tuple[Tensor, Tensor, None]:
            y = self.theirs.see_on_the_way(number, target) if last else self.theirs.see(number, target, output_of)
            return self.ours.see(number, map, input_of), y, None

        return pair

    def _to_stream(self, map: nn.Linear, after: int, share: float, folded: bool) -> Pair:
        """What the map should give so that the stream is as before the original's layer `after`."""
        while self.theirs.layer < after:
            self.theirs.advance()

        def pair(number: int) -> tuple[Tensor, Tensor, Tensor]:
            entering, given, leaving = self.ours.through(number, map)
            wanted = self.theirs.stream(number).to(leaving.device).float()
            y = given.float() + (wanted - leaving.float()) / share
            # Layers look at the stream through a norm: what counts is the error as a share of its size.
            return given if folded else entering, y, 1 / wanted.square().mean(dim=-1).clamp(min=TINY)

        return pair

    def _by_token(self, pair: Pair) -> bool:
        """Whether inputs and targets are one for each token: an expert sees some of them only."""
        x, y, _ = pair(0)
        shape = self.made[0].modality.shape
        return x.shape[:2] == shape and y.shape[:2] == shape

    @property
    def _by_width(self) -> bool:
        return bool(self.plan.removed_heads or self.plan.removed_channels)

    def _next_kept(self, layer: int) -> int:
        return next((kept for kept in self.plan.kept_layers if kept > layer), self.plan.num_layers)

    def _readers(self, layer: int) -> Iterator[tuple[str, str]]:
        """Kind and name in the original of the maps behind a layer's heads and channels, in the order they run in."""
        for kind in ("heads", "channels"):
            with suppress(NotExpressibleError):
                group = getattr(self.backbone, kind)
                yield from ((kind, site.reader_module) for site in group.sites if site.layer == layer)


def _restore(map: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
    map.weight, map.bias = weight, bias


def _too_few(rows: int, tokens: int, widest: int) -> Iterator[str]:
    if tokens * (HELD_OUT - 1) < widest * HELD_OUT:
        needed = -(-widest * HELD_OUT * rows // ((HELD_OUT - 1) * max(tokens, 1)))
        yield f"{rows} rows hold fewer tokens than the widest map has inputs ({widest:,}): give {needed:,} or more"
