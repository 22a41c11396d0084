"""Token embeddings that a model multiplies by a number of its hidden size (Gemma: its root) give what they gave."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbone import Hidden


@torch.no_grad()
def embedding_scale(model: PreTrainedModel) -> float:
    """What the token embeddings give over what their weights hold, at the largest of them."""
    embeddings = model.get_input_embeddings()
    token = embeddings.weight.float().norm(dim=1).argmax().view(1, 1)
    weight = embeddings.weight[token[0, 0]].double()
    return float(embeddings(token)[0, 0].double() @ weight / (weight @ weight))


@torch.no_grad()
def restore_embedding_scale(pruned: PreTrainedModel, hidden: Hidden, scale: float) -> None:
    """Make the token embeddings give what they gave; a head that shares their weights reads that much less.

    Args:
        pruned: its weights are changed.
        hidden: the residual stream of the original.
        scale: of the original's embeddings.
    """
    rate = scale / embedding_scale(pruned)
    embeddings, head = pruned.get_input_embeddings(), pruned.get_output_embeddings()
    embeddings.weight.mul_(rate)
    if head is not None and head.weight is embeddings.weight:
        _scale_output(pruned.get_submodule(hidden.final_norm), 1 / rate)


def _scale_output(norm: nn.Module, factor: float) -> None:
    """Change a norm's weights so that it gives `factor` times what it gave."""
    offset = _gain_offset(norm)
    norm.weight.copy_(factor * (offset + norm.weight.float()) - offset)
    if getattr(norm, "bias", None) is not None:
        norm.bias.mul_(factor)


def _gain_offset(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's, 0 in others. Found by experiment."""
    zeros, ones = (_given(norm, value) for value in (0.0, 1.0))
    return round(float((zeros / (ones - zeros)).median()))


def _given(norm: nn.Module, value: float) -> Tensor:
    """What the norm gives of a fixed row when all its weights are `value`."""
    other = copy.deepcopy(norm).float()
    other.weight.fill_(value)
    if getattr(other, "bias", None) is not None:
        other.bias.zero_()
    return other(torch.linspace(-1, 2, len(other.weight), device=other.weight.device).unsqueeze(0))
