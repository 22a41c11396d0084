"""The losses of one batch, computed inside the student's forward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calibration.batches import IGNORED_LABEL
from .head import BlockLoss, head_losses, rows_a_chunk
from .losses import cross_entropy_sum, distance_sum
from .recipe import TERMS, Recipe
from .tap import Tapped
from .teachers.guidance import Guidance
from .tokens import TOKENS, following, positions


@dataclass
class BatchObjective:
    """What one batch asks of the student.

    Attributes:
        recipe: the terms and their weights.
        labels: (rows, length) int64, -100 where a token is no answer.
        modality: (rows, length) int8.
        counts: (3,) positions of each of `TOKENS` in the whole optimiser step, by which sums are divided.
        guidance: what the teacher says; None where no term asks.
        layer_map: pairs of a student's layer and the original layer it came from, for the term "layers".
        bridge: "final" and "layers" to a map from the student's hidden size to the teacher's, where they differ.
        unreached: gives the trained parameters that the batch does not reach, because it has no images; asked within
            the forward, where FSDP has them whole.
    """

    recipe: Recipe
    labels: Tensor
    modality: Tensor
    counts: Tensor
    guidance: Guidance | None = None
    layer_map: Sequence[tuple[int, int]] = ()
    bridge: Mapping[str, nn.Module] | None = None
    unreached: Callable[[], Sequence[nn.Parameter]] = tuple

    def __call__(self, tapped: Tapped) -> tuple[Tensor, Tensor]:
        """The loss, to be differentiated, and its terms (4,) in the order of `TERMS`, unweighted and detached."""
        loss, terms = self._on_logits(tapped)
        for name in ("hidden", "layers"):
            if self.recipe.weight(name):
                distance = self._distance(name, tapped) / self._count(self.recipe.hidden_tokens)
                loss = loss + self.recipe.weight(name) * distance
                terms[TERMS.index(name)] = distance.detach()
        # A gradient of zero is one: where only the projector trains there is no other, and DDP waits for all.
        return loss + sum(0 * parameter.flatten()[0] for parameter in self.unreached()), terms

    def _on_logits(self, tapped: Tapped) -> tuple[Tensor, Tensor]:
        """The terms "sft" and "logits"; a zero that hangs on the student where neither counts."""
        sft, divergence = self.recipe.weight("sft"), self.recipe.weight("logits")
        terms = torch.zeros(len(TERMS), device=tapped.final.device)
        if not sft and not divergence:
            return 0 * tapped.final[:, 0].float().sum(), terms
        kept = positions(self.modality, self.recipe.logits_tokens if divergence else "answer")
        labels = following(self.labels, IGNORED_LABEL)[kept]
        shares = torch.stack([1 / self._count("answer"), 1 / self._count(self.recipe.logits_tokens)])
        weights = torch.tensor([sft, divergence], device=terms.device) * shares
        tau_squared = self.recipe.temperature**2

        def of_chunk(chunk: slice) -> BlockLoss:
            zero, own = torch.zeros((), device=terms.device), labels[chunk]
            divergence_of = self.guidance.divergence(chunk, self.recipe) if divergence else None

            def of_block(logits: Tensor, block: slice) -> Tensor:
                first = cross_entropy_sum(logits, own[block]) if sft else zero
                second = tau_squared * divergence_of(logits, block) if divergence else zero
                return torch.stack([first, second])

            return of_block

        rows = rows_a_chunk(len(tapped.head.module.weight))
        loss, found = head_losses(tapped.head, tapped.final[kept], of_chunk, weights, rows)
        terms[:2] = found * shares
        return loss, terms

    def _distance(self, name: str, tapped: Tapped) -> Tensor:
        kept = positions(self.modality, self.recipe.hidden_tokens)
        if name == "hidden":
            pairs = [(tapped.final, self.guidance.final())]
        else:
            pairs = [(tapped.layers[own], self.guidance.layer(original)) for own, original in self.layer_map]
        bridge = self.bridge["final" if name == "hidden" else name] if self.bridge is not None else nn.Identity()
        distance = self.recipe.distance
        sums = [distance_sum(bridge(mine[kept].float()), theirs.to(mine.device), distance) for mine, theirs in pairs]
        return sum(one.to(tapped.final.device) for one in sums) / len(sums)

    def _count(self, tokens: str) -> Tensor:
        return self.counts[TOKENS.index(tokens)].clamp(min=1).float()
