"""The losses of recovery as pure functions: fp32 sums over tokens, which the caller divides by their number.

Source: Huang et al. (arXiv 2507.20749), section 3.3; Hinton et al. (arXiv 1503.02531) for the factor tau^2; Agarwal et
al. (arXiv 2306.13649), equation 1, for the generalised Jensen-Shannon divergence.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional


Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Distance = Literal["mse", "cosine"]


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label), summed over tokens.

    Args:
        logits: (tokens, vocabulary), any floating dtype.
        labels: (tokens,) int64; a token whose label is -100 adds nothing.
    """
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def divergence_sum(student: Tensor, teacher: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """Divergence of two distributions over the same outcomes, summed over tokens.

    Args:
        student: (tokens, outcomes) fp32 log-probabilities; -inf where an outcome is impossible.
        teacher: the same of the teacher.
        kind: "forward_kl" is KL(teacher || student), "reverse_kl" KL(student || teacher), "jsd" the generalised
            Jensen-Shannon divergence beta KL(teacher || m) + (1 - beta) KL(student || m) with the mixture
            m = beta teacher + (1 - beta) student.
        beta: in (0, 1), for "jsd" alone.
    """
    if kind == "forward_kl":
        return _KL.apply(teacher, student)
    if kind == "reverse_kl":
        return _KL.apply(student, teacher)
    # Finite, because the gradient of logaddexp is not a number where both are -inf.
    finite_teacher, finite_student = (each.clamp(min=torch.finfo(each.dtype).min) for each in (teacher, student))
    mixture = torch.logaddexp(finite_teacher + math.log(beta), finite_student + math.log1p(-beta))
    return beta * _KL.apply(teacher, mixture) + (1 - beta) * _KL.apply(student, mixture)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """fp32 log-softmax of logits (tokens, vocabulary) at a temperature."""
    return functional.log_softmax(logits.float() / temperature, dim=-1)


def bucketed_log_probabilities(logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of some tokens of the vocabulary, and of all the others together.

    Args:
        logits: (tokens, vocabulary).
        indices: (tokens, k) int64, distinct in each row.
        temperature: tau.

    Returns:
        (tokens, k + 1) fp32; the last column is -inf where k is the whole vocabulary.
    """
    scaled = logits.float() / temperature
    others = scaled.scatter(-1, indices, float("-inf"))
    columns = torch.cat([scaled.gather(-1, indices), _logsumexp(others)], dim=-1)
    return columns - scaled.logsumexp(dim=-1, keepdim=True)


def distance_sum(student: Tensor, teacher: Tensor, kind: Distance) -> Tensor:
    """Distance of hidden states, summed over tokens.

    Args:
        student: (tokens, hidden).
        teacher: (tokens, hidden).
        kind: "mse" is the mean over channels of the squared difference, "cosine" 1 - cos.
    """
    student, teacher = student.float(), teacher.float()
    if kind == "mse":
        return (student - teacher).square().mean(dim=-1).sum()
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).sum()


class _KL(torch.autograd.Function):
    """Sum of p (log p - log q), of log p and log q; an outcome that is impossible in p adds nothing.

    Written out because autograd would go over the logits of a large vocabulary twice as often.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        p = first.exp()
        difference = (first - second).masked_fill_(p == 0, 0)
        ctx.save_for_backward(p, difference)
        return (p * difference).sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, difference = ctx.saved_tensors
        by_first = scale * p * (difference + 1) if ctx.needs_input_grad[0] else None
        return by_first, -scale * p if ctx.needs_input_grad[1] else None


def _logsumexp(values: Tensor) -> Tensor:
    """(tokens, 1); -inf, with a gradient of zero, where every value is -inf."""
    empty = values.isneginf().all(dim=-1, keepdim=True)
    total = values.masked_fill(empty, 0).logsumexp(dim=-1, keepdim=True)
    return total.masked_fill(empty, float("-inf"))
