"""Loading a model's processor."""

from typing import Any

from transformers import AutoProcessor, ProcessorMixin

from ..errors import UserInputError, first_line
from ..quiet import quiet


def load_processor(model_id: str, **hub: Any) -> ProcessorMixin:
    """The processor of a model, with image processing and tokenizer in one.

    Args:
        model_id: Hub id or local folder.
        hub: as in `from_pretrained`: `revision`, `token`, `cache_dir`.

    Raises:
        UserInputError: there is no processor, it needs code of its own, or it needs a library that is not installed,
            such as torchvision.
    """
    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(model_id, **hub, trust_remote_code=False)
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
    if "trust_remote_code" in str(error):
        return (
            f"The processor of {model_id!r} needs code from its repository, which the pruned checkpoint would need "
            "too; give a model whose processor transformers itself has a class for."
        )
    return f"The processor of {model_id!r} cannot be loaded: {first_line(error)}"
