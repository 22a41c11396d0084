"""Models without weights: what a config would build, on the meta device."""

import copy

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


Shapes = dict[str, tuple[int, ...]]


def skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build `model_class(config)` on the meta device: every name and shape, no memory."""
    with torch.device("meta"):
        return model_class._from_config(copy.deepcopy(config))


def shapes_of(model: nn.Module) -> Shapes:
    """Name to shape of every tensor of the state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def count_parameters(*modules: nn.Module | None) -> int:
    """Number of distinct parameters below `modules`; a tied or shared tensor counts once."""
    distinct = {id(p): p.numel() for module in modules if module is not None for p in module.parameters()}
    return sum(distinct.values())


def count_backbone_parameters(model: PreTrainedModel) -> int:
    """Parameters of the language backbone: decoder, token embeddings and head (the paper's base of a ratio)."""
    return count_parameters(model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())


def attention_implementations(config: PreTrainedConfig) -> dict[str, str]:
    """Attention implementation of the whole model ("") and of each part: parts may support different ones."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation} | {
        name: part._attn_implementation for name, part in parts.items() if part is not None
    }
