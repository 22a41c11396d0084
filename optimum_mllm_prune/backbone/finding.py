"""Where things are: the class that builds a config, and the decoder layers inside a model."""

from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from ..errors import UserInputError


def model_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that `AutoModelForImageTextToText` builds for a config.

    Raises:
        UserInputError: the config is not one of a vision-language model.
    """
    mapping = AutoModelForImageTextToText._model_mapping
    if type(config) not in mapping:
        raise UserInputError(
            f"model type '{config.model_type}' is not a vision-language model: "
            "give one that AutoModelForImageTextToText loads."
        )
    return mapping[type(config)]


def image_encoder(model: PreTrainedModel) -> nn.Module | None:
    """What transformers calls the image encoder; None where it knows none, and gives the model itself."""
    found = model.get_encoder(modality="image")
    return None if found in (model, model.base_model) or not isinstance(found, nn.Module) else found


def layer_lists(model: PreTrainedModel, num_layers: int) -> list[str]:
    """Names of the module lists below the decoder with `num_layers` members, each with linear maps in it."""
    decoder = model.get_decoder()
    home = next(name for name, module in model.named_modules() if module is decoder)
    return [
        f"{home}.{name}".strip(".")
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and all(any(isinstance(m, nn.Linear) for m in layer.modules()) for layer in module)
    ]
