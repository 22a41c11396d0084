"""What a teacher says about one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..losses import bucketed_log_probabilities, divergence_sum, log_probabilities
from ..recipe import Recipe


BlockDivergence = Callable[[Tensor, slice], Tensor]
"""The student's logits (tokens, vocabulary) and which tokens of a chunk they are of, to a divergence, summed."""


class Guidance(ABC):
    """What the objective asks of a teacher, at the positions where it asks."""

    @abstractmethod
    def divergence(self, chunk: slice, recipe: Recipe) -> BlockDivergence:
        """How far the student is from it at a chunk of the logits' positions."""

    @abstractmethod
    def final(self) -> Tensor:
        """(tokens, hidden): final hidden states at the hidden states' positions."""

    @abstractmethod
    def layer(self, number: int) -> Tensor:
        """(tokens, hidden): output of a layer of the original at the hidden states' positions."""


@dataclass
class LiveGuidance(Guidance):
    """From a teacher in memory.

    Attributes:
        head: the teacher's, states to logits.
        before_head: (tokens, hidden) at the logits' positions.
        final_states: (tokens, hidden) at the hidden states' positions.
        layers: the same of layers, by their number in the original.
    """

    head: Callable[[Tensor], Tensor]
    before_head: Tensor
    final_states: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)

    def divergence(self, chunk: slice, recipe: Recipe) -> BlockDivergence:
        """The teacher's logits are made for this chunk alone."""
        own = self.head(self.before_head[chunk]).detach()

        def of_block(logits: Tensor, block: slice) -> Tensor:
            student = log_probabilities(logits, recipe.temperature)
            teacher = log_probabilities(own[block].to(logits.device), recipe.temperature)
            return divergence_sum(student, teacher, recipe.divergence, recipe.beta)

        return of_block

    def final(self) -> Tensor:
        """As it is."""
        return self.final_states

    def layer(self, number: int) -> Tensor:
        """As it is."""
        return self.layers[number]


@dataclass
class StoredGuidance(Guidance):
    """From a cache: the k likeliest tokens, and the mass of the rest.

    Attributes:
        indices: (tokens, k) int64.
        log_probs: (tokens, k + 1) fp32 at the recipe's temperature, the rest last.
        final_states: (tokens, hidden); None where the cache holds none.
    """

    indices: Tensor
    log_probs: Tensor
    final_states: Tensor | None

    def divergence(self, chunk: slice, recipe: Recipe) -> BlockDivergence:
        """Over the k stored tokens and the rest as one outcome."""
        indices, teacher = self.indices[chunk], self.log_probs[chunk]

        def of_block(logits: Tensor, block: slice) -> Tensor:
            student = bucketed_log_probabilities(logits, indices[block], recipe.temperature)
            return divergence_sum(student, teacher[block], recipe.divergence, recipe.beta)

        return of_block

    def final(self) -> Tensor:
        """As stored. Raises ValueError where there are none."""
        if self.final_states is None:
            raise ValueError("the cache holds no hidden states")
        return self.final_states

    def layer(self, number: int) -> Tensor:
        """Raises ValueError: a cache never holds layers."""
        raise ValueError("a cache holds no intermediate layers")
