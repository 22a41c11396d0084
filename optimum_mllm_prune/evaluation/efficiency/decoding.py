"""Greedy generation of a fixed number of tokens: what every measurement here runs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...checkpoint.verification import special_tokens


def generate(model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int, **options: Any) -> Any:
    """Generate exactly `new_tokens` tokens with a cache; tokens that stand for no text are never chosen.

    Args:
        model: run as it is.
        inputs: what forward takes, tensors by name, on its device.
        new_tokens: how many.
        options: more of `model.generate`.

    Returns:
        What `model.generate` returns.
    """
    return model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        suppress_tokens=special_tokens(model.config) or None,
        **options,
    )
