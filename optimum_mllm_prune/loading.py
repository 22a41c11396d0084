"""From an id or a folder to a config and a model, every mistake told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from optimum.utils import logging
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from .backbone import model_class_of
from .errors import UserInputError


logger = logging.get_logger("optimum.mllm_prune.loading")


def load_config(model_id: str, **hub: Any) -> PreTrainedConfig:
    """The config of a vision-language model.

    Args:
        model_id: Hub id or local folder.
        hub: `revision`, `token`, `cache_dir`, `trust_remote_code`.

    Raises:
        UserInputError: there is no such model, its config cannot be read, or it is not a vision-language model.
    """
    folder = Path(model_id)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserInputError(f"'{model_id}' holds no config.json: give the folder of a saved model, or a Hub id.")
    try:
        config = AutoConfig.from_pretrained(model_id, **hub)
    except OSError as error:
        if folder.is_dir():
            raise UserInputError(f"the config of '{model_id}' cannot be read: {_first_line(error)}") from error
        raise UserInputError(
            f"no model '{model_id}': it is neither a local folder nor reachable on the Hub ({_first_line(error)})"
        ) from error
    except StrictDataclassError as error:
        raise UserInputError(f"the config of '{model_id}' cannot be read: {' '.join(str(error).split())}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError(f"the config of '{model_id}' cannot be read: {_first_line(error)}") from error
    model_class_of(config)
    return config


def load_model(
    model_id: str,
    config: PreTrainedConfig,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    device_map: Any = None,
    **hub: Any,
) -> PreTrainedModel:
    """The model with all its weights, in eval mode.

    Args:
        model_id: Hub id or local folder.
        config: its config.
        dtype: number format of the weights; "auto" as saved.
        device: where to put the whole model; by default the first GPU, else the CPU.
        device_map: how to spread it instead, as in `from_pretrained`.
        hub: `revision`, `token`, `cache_dir`, `trust_remote_code`.

    Raises:
        UserInputError: the weights are absent, damaged, incomplete, or do not fit on the device.
    """
    if device is not None and device_map is not None:
        raise UserInputError("device and device_map both say where the model goes: give one of them.")
    try:
        with _no_loading_report():
            # Weights of another shape are told by name below, which transformers does only in its report.
            model, found = model_class_of(config).from_pretrained(
                model_id,
                config=config,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **hub,
            )
        if device_map is None:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (SafetensorError, EOFError) as error:
        raise UserInputError(
            f"the weights of '{model_id}' are damaged or cut short ({_first_line(error)}): fetch them again."
        ) from error
    except OSError as error:
        raise UserInputError(f"the weights of '{model_id}' cannot be loaded: {_first_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise
        raise UserInputError(f"'{model_id}' cannot be loaded: {_first_line(error)}") from error
    _refuse_incomplete(model_id, found)
    if found["unexpected_keys"]:
        strange = sorted(str(key) for key in found["unexpected_keys"])
        logger.warning(f"{len(strange)} tensors belong to no weight and are left out (first: {strange[0]}).")
    return model.eval()


def commit_of(config: PreTrainedConfig) -> str | None:
    """Commit hash that a Hub model was loaded at; None for a local one."""
    return getattr(config, "_commit_hash", None)


def public_name(name: str) -> str:
    """What may be written down of an id or a path: a Hub id whole, of a local path its last part.

    A path need not exist: the output folder does not yet when the command line is written down.
    """
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).exists()
    return Path(name).name if is_path else name


@contextmanager
def _no_loading_report() -> Iterator[None]:
    """Without the table that transformers logs of absent and unknown weights: what matters of it is told in a line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _refuse_incomplete(model_id: str, found: dict[str, Any]) -> None:
    mismatched = [name for name, *_ in found["mismatched_keys"]]
    for what, keys in (("has in another shape", mismatched), ("lacks", found["missing_keys"])):
        if keys:
            first = sorted(str(key) for key in keys)[0]
            raise UserInputError(
                f"the checkpoint '{model_id}' {what} {len(keys)} of the model's weights (first: {first}); "
                "loaded so, they would be random."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
