"""Token embeddings that a model multiplies by a number of its hidden size (Gemma: its root) give what they gave."""

import torch
from transformers import PreTrainedModel

from ..backbone import Hidden, scale_gain


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
        norm = pruned.get_submodule(hidden.final_norm)
        scale_gain(norm, 1 / rate)
        if getattr(norm, "bias", None) is not None:
            norm.bias.div_(rate)
