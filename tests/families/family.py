"""One family of small random models, and what is done with any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from families.inputs import Tensors, rows
from families.sizes import PAD, SPECIAL_TOKENS
from optimum_mllm_prune.backbone import Backbone


@dataclass(frozen=True)
class Family:
    """One kind of vision-language model: how to configure it, build it and feed it."""

    name: str
    config: Callable[[], PreTrainedConfig]
    inputs: Callable[[PreTrainedConfig], Tensors]
    # Already in the unpruned model, with a text-only row that is not padded: logits depend on the cache.
    cached_text_generation_differs: bool = False

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Return the model in eval mode, with random weights that depend on nothing but the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(self.config(), dtype=dtype)
        randomise(model, seed)
        return model.eval()

    def text_inputs(self, config: PreTrainedConfig) -> Tensors:
        """Return a batch of two rows without an image, the second padded on the right."""
        return rows(config, image_tokens=(0, 0))


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Fill the parameters so that no layer, head, channel, norm, bias or gate is without effect.

    Freshly initialised norms, biases and gates hold ones and zeros: a mistake in slicing them would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = set()  # a tied parameter is met once by each of its owners
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                # Around the initial value: 1 for most norms, 0 for biases and for norms that multiply by 1 + weight.
                # A gate of one element is moved by a fixed amount, or a small draw would leave it shut.
                value = parameter.float() + (0.5 * noise.sign() if parameter.numel() == 1 else 0.2 * noise)
            else:
                value = noise * _scale(module, parameter)
            parameter.copy_(value)


def _scale(module: nn.Module, parameter: nn.Parameter) -> float:
    if isinstance(module, nn.Embedding):
        return 0.15  # not more than one layer adds to the residual stream, so that each layer counts
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return parameter[0].numel() ** -0.5
    return max(parameter.shape[-2:]) ** -0.5


def reload(path: str | PathLike[str]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a saved model in eval mode; return it with what the loading report complains about (best: nothing)."""
    model, report = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    for parameter in model.parameters():
        # Tensors mapped from a file may lie off the alignment that freshly made ones have, kernels then round
        # differently, and models with equal weights would not give equal logits.
        parameter.data = parameter.data.clone()
    return model.eval(), {key: found for key, found in report.items() if found}


def greedy(
    model: PreTrainedModel, inputs: Tensors, use_cache: bool, new_tokens: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate greedily a fixed number of text tokens; return the new tokens and the logits they were chosen by.

    No special token is generated: one more image token would ask for one more image. The logits tell more than
    the tokens, which often agree by luck.
    """
    output = model.generate(
        **inputs,
        do_sample=False,
        use_cache=use_cache,
        max_new_tokens=new_tokens,
        pad_token_id=PAD,
        suppress_tokens=list(SPECIAL_TOKENS),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, -new_tokens:], torch.stack(output.logits, dim=1)


def head_choices(backbone: Backbone) -> dict[int, bool]:
    """Numbers of head units that a checkpoint can have, fewer than now: number to "needs the twin"."""
    choices = {kept: backbone.needs_twin(kept) for kept in backbone.head_numbers[1:]}
    return {kept: twin for kept, twin in choices.items() if twin is not None}
