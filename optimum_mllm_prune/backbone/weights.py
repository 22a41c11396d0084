"""The weights of a model, as far as they are there."""

from transformers import PreTrainedModel

from ..errors import UserInputError


def refuse_offloaded(model: PreTrainedModel) -> None:
    """Raise UserInputError where some weights wait on the CPU or on disk until a forward pass fetches them.

    Their place in the model is a tensor of the meta device, which can be neither scored nor sliced.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserInputError(
            "some weights are offloaded to the CPU or to disk: load the whole model with device 'cpu', or with a "
            "device_map of enough GPUs."
        )
