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
from ..calibration.walk import Walk
from ..planning import PruningPlan
from .judge import Judge, likelier, surely_less_likely
from .least_squares import Fit, best_fit
from .maps import Pair, assign, moments_of, with_bias
from .merge import Merge, merge
from .result import Refit, Repair
from .rows import config_of, repair_method
from .stream import share_in_stream
from .targets import Targets, together


BATCH_SIZE = 8
# One row in so many is not fitted to: it decides how much a map may change, and whether the repair is kept.
HELD_OUT = 4
# What rounding errs by, as a share of the squares of what is to be given: then there is nothing to mend.
EXACT = 1e-10
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

    Inputs are always those of the pruned model so far, so that what one layer errs the next one mends. Every linear
    map behind the first thing that went is fitted to what the original's gives at the same tokens, as far as that
    stays. Where layers went, the `down_proj` before them is fitted to what the stream is after them in the original. A
    map is changed only where that lowers its error on rows that it was not fitted to, and before removed layers only
    where it makes the answers of these likelier; all is undone should they surely be less likely in the end. A plan
    that merges its layers is merged instead; then no row is read.

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
    targets = Targets(original, backbone, plan)
    with evaluating(original), evaluating(pruned), torch.no_grad():
        walks = _Walks(original, pruned, backbone, plan, targets, *made)
        first = walks.judge.losses()
        if method == LEAST_SQUARES:
            walks.mend_projectors()
        for layer in tqdm(plan.kept_layers, desc="Repairing", unit="layer"):
            walks.mend(layer, method)
        last = walks.kept(first)
    before, after = walks.judge.by_token(first), walks.judge.by_token(last)
    tokens = sum(int((batch.modality != Modality.PADDING).sum()) for batch in walks.made)
    names = [name for refit in walks.refits for name in refit.modules]
    widest = max((pruned.get_submodule(name).in_features for name in names), default=0)
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
        targets: Targets,
        fit: Sequence[Batch],
        held_out: Sequence[Batch],
    ) -> None:
        self.original, self.pruned, self.backbone, self.plan = original, pruned, backbone, plan
        self.targets = targets
        self.made, self.first_held_out = [*fit, *held_out], len(fit)
        self.theirs = Walk(original, original.get_submodule(backbone.layers_prefix), self.made)
        self.ours = Walk(pruned, pruned.get_submodule(backbone.layers_prefix), self.made)
        self.judge = Judge(pruned, held_out)
        self.by_modality = config_of(plan).modality_weights
        self.refits: list[Refit] = []
        self.notes: list[str] = []
        self._replaced: list[tuple[nn.Linear, nn.Parameter, nn.Parameter | None]] = []

    def mend_projectors(self) -> None:
        """Refit the maps before the layers that have lost inputs."""
        for name in self.targets.projectors:
            if type(self.pruned.get_submodule(name)) is nn.Linear:
                self._fit([name], self._to_projector(name))

    def mend(self, layer: int, method: str) -> None:
        """Refit the maps of a kept layer, and go on to the next one."""
        while self.theirs.layer < layer:
            self.theirs.advance()
        after = self._next_kept(layer)
        before_gap = set(self._down_projections(layer)) if after > layer + 1 else set()
        everywhere = method == LEAST_SQUARES and self._has_changed(layer)
        if everywhere or before_gap:
            # What is fitted to the stream comes last, also where the MLP runs first: the original walks on for it.
            groups = sorted(self._maps(layer), key=lambda group: before_gap.issuperset(group[0]))
            for names, by_token in groups:
                if before_gap.issuperset(names):
                    self._fit_to_stream(names[0], after, method, or_to_map=everywhere and by_token)
                elif everywhere and by_token:
                    self._fit_to_maps(names, last=names is groups[-1][0])
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

    def _fit_to_stream(self, name: str, after: int, method: str, or_to_map: bool) -> None:
        """Refit a map to the stream before the original's layer `after`; where that cannot be, to the original's."""
        own = self._own(name)
        share = share_in_stream(self.ours, self.pruned.get_submodule(own))
        if share is None:
            self.notes.append(
                f"{own} is not fitted to the layers removed after it: it is not simply added to the stream"
            )
            if or_to_map:
                self._fit_to_maps([name], last=False)
            return
        folded = method == LINEAR_MAP
        self._fit([own], self._to_stream(own, after, share, folded), folded, judged=True)

    def _fit_to_maps(self, names: list[str], last: bool) -> None:
        """Refit maps that read the same, the last of their layer or not, to what the original's give."""
        self._fit(list(map(self._own, names)), self._to_maps(names, last))

    def _fit(self, own: list[str], pair: Pair, folded: bool = False, judged: bool = False) -> None:
        """Fit maps that read the same, called `own` in the pruned model; `folded`, a map of the outputs is fitted."""
        maps = [self.pruned.get_submodule(name) for name in own]
        start = torch.cat([with_bias(map) for map in maps])
        unchanged = torch.eye(len(start)).to(start) if folded else start
        fitted, held_out = moments_of(self.made, self.first_held_out, pair, unchanged, self.by_modality)
        before = held_out.error()
        if before <= EXACT:
            return
        fit = best_fit(fitted, held_out)
        if fit is not None and not self._changed(maps, fit, unchanged, start if folded else None, judged):
            fit = None
        self.refits.append(Refit(tuple(own), before, fit.error if fit else before, fit.ridge if fit else None))

    def _changed(
        self, maps: list[nn.Linear], fit: Fit, unchanged: Tensor, folded_into: Tensor | None, judged: bool
    ) -> bool:
        """Give maps their new weights; where the answers decide, only if that makes them likelier."""
        losses = self.judge.losses() if judged else None
        old = [(map, map.weight, map.bias) for map in maps]
        weight = (unchanged + fit.change).float()
        weight = weight if folded_into is None else weight @ folded_into
        for map, part in zip(maps, weight.split([map.out_features for map in maps]), strict=True):
            assign(map, part)
        if losses is not None and not likelier(losses, self.judge.losses()):
            for parameters in old:
                _restore(*parameters)
            return False
        self._replaced += old
        return True

    def _to_maps(self, names: list[str], last: bool) -> Pair:
        """What the original's maps give; with the last of a layer what the layer gives is known as well."""
        maps = [self.pruned.get_submodule(self._own(name)) for name in names]
        theirs = [self.original.get_submodule(name) for name in names]

        def pair(number: int) -> tuple[Tensor, Tensor, None]:
            given = self.theirs.met(number, theirs, on_the_way=last)
            y = [self.targets.of_outputs(name, given[map][1]) for name, map in zip(names, theirs, strict=True)]
            return self.ours.met(number, maps[:1])[maps[0]][0], torch.cat(y, dim=-1), None

        return pair

    def _to_projector(self, name: str) -> Pair:
        """What the original's projector gives, of rows with images."""
        map, theirs = self.pruned.get_submodule(name), self.original.get_submodule(name)

        def pair(number: int) -> tuple[Tensor, Tensor, None] | None:
            if not (self.made[number].modality == Modality.IMAGE).any():
                return None
            y = self.theirs.met(number, [theirs])[theirs][1]
            return self.ours.met(number, [map])[map][0], self.targets.of_outputs(name, y), None

        return pair

    def _to_stream(self, own: str, after: int, share: float, folded: bool) -> Pair:
        """What a map should give so that the stream is as before the original's layer `after`."""
        map = self.pruned.get_submodule(own)
        while self.theirs.layer < after:
            self.theirs.advance()

        def pair(number: int) -> tuple[Tensor, Tensor, Tensor]:
            entering, given, leaving = self.ours.through(number, map)
            wanted = self.targets.of_stream(self.theirs.stream(number)).to(leaving.device).float()
            y = given.float() + (wanted - leaving.float()) / share
            # Layers look at the stream through a norm: what counts is the error as a share of its size.
            return given if folded else entering, y, 1 / wanted.square().mean(dim=-1).clamp(min=TINY)

        return pair

    def _has_changed(self, layer: int) -> bool:
        """Whether a layer has lost something, or is given something else than in the original."""
        plan = self.plan
        by_width = plan.removed_heads or plan.removed_channels or plan.removed_hidden
        return bool(by_width) or any(removed < layer for removed in plan.removed_layers)

    def _next_kept(self, layer: int) -> int:
        return next((kept for kept in self.plan.kept_layers if kept > layer), self.plan.num_layers)

    def _own(self, name: str) -> str:
        """Name in the pruned model."""
        return self.backbone.renamed(f"{name}.", self.plan.kept_layers).rstrip(".")

    def _maps(self, layer: int) -> Iterator[tuple[list[str], bool]]:
        """As `together`, with the names of a layer's linear maps in the original."""
        prefix = f"{self.backbone.layers_prefix}.{layer}"
        named = {module: name for name, module in self.original.get_submodule(prefix).named_modules(prefix=prefix)}
        maps = [module for module in named if type(module) is nn.Linear]
        for group, by_token in together(self.theirs, maps):
            yield [named[map] for map in group], by_token

    def _down_projections(self, layer: int) -> Iterator[str]:
        """Names of the maps behind a layer's MLP channels."""
        with suppress(NotExpressibleError):
            yield from (site.reader_module for site in self.backbone.channels.sites if site.layer == layer)


def _restore(map: nn.Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
    map.weight, map.bias = weight, bias


def _too_few(rows: int, tokens: int, widest: int) -> Iterator[str]:
    if tokens * (HELD_OUT - 1) < widest * HELD_OUT:
        needed = -(-widest * HELD_OUT * rows // ((HELD_OUT - 1) * max(tokens, 1)))
        yield f"{rows} rows hold fewer tokens than the widest map has inputs ({widest:,}): give {needed:,} or more"
