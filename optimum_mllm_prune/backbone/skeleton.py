"""Models without weights: what a config would build, on the meta device."""

import copy

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .text_config import text_config


Shapes = dict[str, tuple[int, ...]]


def skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build `model_class(config)` on the meta device: every name and shape, no memory."""
    with torch.device("meta"), no_init_weights():
        model = model_class._from_config(copy.deepcopy(config))
    # Where nothing is initialised, nothing is tied.
    model.tie_weights()
    return model


def shapes_of(model: nn.Module) -> Shapes:
    """Name to shape of every tensor of the state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def first_difference(intended: Shapes, built: Shapes) -> str | None:
    """The first tensor that two models do not have alike, in words; None where there is none."""
    for name in sorted(intended.keys() | built.keys()):
        if intended.get(name) != built.get(name):
            return f"{name} would be {intended.get(name)} but the edited config builds {built.get(name)}"
    return None


def count_parameters(*modules: nn.Module | None) -> int:
    """Number of distinct parameters below `modules`; a tied or shared tensor counts once."""
    distinct = {id(p): p.numel() for module in modules if module is not None for p in module.parameters()}
    return sum(distinct.values())


def count_backbone_parameters(model: PreTrainedModel) -> int:
    """Parameters of the language backbone: decoder, token embeddings and head (the paper's base of a ratio).

    Where the decoder is the whole model (GIT), its parts with a config of another kind, the vision encoder, are none.
    """
    modules = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return count_parameters(*modules) - count_parameters(*_strangers(model))


def language_tensors(model: PreTrainedModel) -> set[str]:
    """Names of the tensors of the language backbone: of decoder, token embeddings and head."""
    modules = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    inside = {id(part) for module in modules if module is not None for part in module.modules()}
    inside -= {id(part) for stranger in _strangers(model) for part in stranger.modules()}
    homes = {name for name, module in model.named_modules(remove_duplicate=False) if id(module) in inside}
    return {name for name in model.state_dict() if name.rpartition(".")[0] in homes}


def _strangers(model: PreTrainedModel) -> list[nn.Module]:
    """Modules below the decoder that are built from another kind of config than the text's or the whole model's."""
    own = (type(model.config), type(text_config(model.config)))
    modules = [m for m in model.get_decoder().modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)]
    return [module for module in modules if not isinstance(module.config, own)]


def attention_implementations(config: PreTrainedConfig) -> dict[str, str]:
    """Attention implementation of the whole model ("") and of each part: parts may support different ones."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config._attn_implementation} | {
        name: part._attn_implementation for name, part in parts.items() if part is not None
    }
