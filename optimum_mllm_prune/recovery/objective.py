"""The losses of one batch, computed inside the student's forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .guidance import Guidance
from .head import head_losses, rows_a_chunk
from .losses import cross_entropy_sum, distance_sum
from .recipe import TERMS, Recipe
from .tap import Tapped
from .tokens import TOKENS, positions


IGNORED_LABEL = -100


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
    """

    recipe: Recipe
    labels: Tensor
    modality: Tensor
    counts: Tensor
    guidance: Guidance | None = None
    layer_map: Sequence[tuple[int, int]] = ()
    bridge: Mapping[str, nn.Module] | None = None

    def __call__(self, tapped: Tapped) -> tuple[Tensor, Tensor]:
        """The loss, to be differentiated, and its terms (4,) in the order of `TERMS`, unweighted and detached."""
        loss, terms = self._on_logits(tapped)
        for name in ("hidden", "layers"):
            if self.recipe.weight(name):
                distance = self._distance(name, tapped) / self._count(self.recipe.hidden_tokens)
                loss = loss + self.recipe.weight(name) * distance
                terms[TERMS.index(name)] = distance.detach()
        return loss, terms

    def _on_logits(self, tapped: Tapped) -> tuple[Tensor, Tensor]:
        """The terms "sft" and "logits"; a zero that hangs on the student where neither counts."""
        sft, divergence = self.recipe.weight("sft"), self.recipe.weight("logits")
        terms = torch.zeros(len(TERMS), device=tapped.final.device)
        if not sft and not divergence:
            return 0 * tapped.final[:, 0].float().sum(), terms
        kept = positions(self.modality, self.recipe.logits_tokens if divergence else "answer")
        labels = next_labels(self.labels)[kept]
        shares = torch.stack([1 / self._count("answer"), 1 / self._count(self.recipe.logits_tokens)])
        weights = torch.tensor([sft, divergence], device=terms.device) * shares
        tau_squared = self.recipe.temperature**2

        def of_chunk(logits: Tensor, chunk: slice) -> Tensor:
            zero = torch.zeros((), device=logits.device)
            answered = labels[chunk] != IGNORED_LABEL
            first = cross_entropy_sum(logits[answered], labels[chunk][answered]) if sft else zero
            second = tau_squared * self.guidance.divergence(logits, chunk, self.recipe) if divergence else zero
            return torch.stack([first, second])

        vocabulary = self._vocabulary(tapped)
        loss, found = head_losses(
            tapped.head, tapped.parameters, tapped.final[kept], of_chunk, weights, rows_a_chunk(vocabulary)
        )
        terms[:2] = found * shares
        return loss, terms

    def _distance(self, name: str, tapped: Tapped) -> Tensor:
        kept = positions(self.modality, self.recipe.hidden_tokens)
        if name == "hidden":
            pairs = [(tapped.final, self.guidance.final())]
        else:
            pairs = [(tapped.layers[own], self.guidance.layer(original)) for own, original in self.layer_map]
        bridge = self.bridge["final" if name == "hidden" else name] if self.bridge is not None else nn.Identity()
        sums = [
            distance_sum(bridge(mine[kept]), theirs.to(mine.device), self.recipe.distance) for mine, theirs in pairs
        ]
        return sum(one.to(tapped.final.device) for one in sums) / len(sums)

    def _count(self, tokens: str) -> Tensor:
        return self.counts[TOKENS.index(tokens)].clamp(min=1).float()

    def _vocabulary(self, tapped: Tapped) -> int:
        return max(len(parameter) for parameter in tapped.parameters)


def next_labels(labels: Tensor) -> Tensor:
    """(rows, length): at each position the label of the token that follows it."""
    following = torch.full_like(labels, IGNORED_LABEL)
    following[:, :-1] = labels[:, 1:]
    return following
