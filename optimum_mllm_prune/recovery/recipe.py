"""What recovery minimises: a weighted sum of terms, by name of a preset or spelled out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from ..errors import UserInputError
from .losses import Distance, Divergence
from .tokens import TOKENS, Tokens


TERMS = ("sft", "logits", "hidden", "layers")

PRESETS: dict[str, dict[str, float]] = {
    "sft": {"sft": 1.0},
    "kd": {"logits": 1.0},
    "hidden": {"hidden": 1.0},
    "sft+kd": {"sft": 0.5, "logits": 0.5},
    # The best of Huang et al. (arXiv 2507.20749), section 4.3.
    "sft+hidden": {"sft": 0.5, "hidden": 0.5},
    "sft+hidden+kd": {"sft": 0.5, "hidden": 0.25, "logits": 0.25},
}


@dataclass(frozen=True)
class Recipe:
    """The losses of one training.

    Attributes:
        weights: weight of each term that counts, of `TERMS`.
        divergence: of the logits, see `losses.divergence_sum`.
        temperature: tau, at which logits are compared; the term is multiplied by tau^2.
        beta: of the generalised Jensen-Shannon divergence.
        logits_tokens: where logits are compared, "answer" or "text".
        distance: of hidden states, "mse" or "cosine".
        hidden_tokens: where hidden states are compared, "answer", "text" or "all".

    Raises:
        UserInputError: a value is unknown or out of range.
    """

    weights: Mapping[str, float]
    divergence: Divergence = "forward_kl"
    temperature: float = 2.0
    beta: float = 0.5
    logits_tokens: Tokens = "answer"
    distance: Distance = "mse"
    hidden_tokens: Tokens = "answer"

    def __post_init__(self) -> None:
        _one_of("divergence", self.divergence, get_args(Divergence))
        _one_of("hidden_distance", self.distance, get_args(Distance))
        _one_of("logits_tokens", self.logits_tokens, ("answer", "text"))
        _one_of("hidden_tokens", self.hidden_tokens, TOKENS)
        if not 0 < self.temperature < float("inf"):
            raise UserInputError(f"temperature must be a number above 0, got {self.temperature}.")
        if not 0 < self.beta < 1:
            raise UserInputError(f"jsd_beta must lie between 0 and 1, got {self.beta}.")

    def weight(self, term: str) -> float:
        """How much a term counts; 0 where it does not."""
        return self.weights.get(term, 0.0)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at the teacher."""
        return any(term != "sft" for term in self.weights)


def loss_weights(loss: str) -> dict[str, float]:
    """Weights of a preset ("sft+hidden") or of a list ("sft=0.5,hidden=0.5,layers=0.1").

    Raises:
        UserInputError: neither.
    """
    if loss in PRESETS:
        return dict(PRESETS[loss])
    if "=" not in loss:
        raise UserInputError(
            f"unknown loss '{loss}': use one of {', '.join(PRESETS)}, or weights such as sft=0.5,hidden=0.5."
        )
    weights = {}
    for entry in loss.split(","):
        term, _, number = entry.partition("=")
        term = term.strip()
        _one_of("loss term", term, TERMS)
        if term in weights:
            raise UserInputError(f"loss '{loss}' names the term '{term}' twice: name it once.")
        weights[term] = _weight(term, number)
    if not any(weights.values()):
        raise UserInputError(f"loss '{loss}' is always zero: give at least one term a weight.")
    return {term: weight for term, weight in weights.items() if weight}


def _weight(term: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise UserInputError(f"the weight of loss term '{term}' must be a number of at least 0, got '{number}'.")
    return weight


def _one_of(key: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise UserInputError(f"unknown {key} '{value}': use one of {', '.join(allowed)}.")
