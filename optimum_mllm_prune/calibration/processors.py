"""Loading a model's processor."""

from typing import Any

from transformers import AutoProcessor, ProcessorMixin

from ..errors import UserInputError


def load_processor(model_id: str, **hub_kwargs: Any) -> ProcessorMixin:
    """The processor of a model, with image processing and tokenizer in one.

    Args:
        model_id: Hub id or local folder.
        hub_kwargs: as in `from_pretrained`: `revision`, `token`, `cache_dir`, `trust_remote_code`.

    Raises:
        UserInputError: there is no processor, or it needs a library that is not installed, such as torchvision.
    """
    try:
        processor = AutoProcessor.from_pretrained(model_id, **hub_kwargs)
    except (ImportError, OSError, ValueError) as error:
        raise UserInputError(_line(model_id, error)) from error
    # transformers falls back to a bare tokenizer where it finds nothing else.
    if not isinstance(processor, ProcessorMixin):
        raise UserInputError(f"Model {model_id!r} has no processor for images; give a vision-language model.")
    return processor


def _line(model_id: str, error: Exception) -> str:
    if "torchvision" in str(error).lower():
        return (
            f"The processor of {model_id!r} needs torchvision, which is not installed; install the torchvision build "
            "that matches your torch."
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"The processor of {model_id!r} cannot be loaded: {reason}"
