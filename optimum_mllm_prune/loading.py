"""From an id or a folder to a config and a model, every mistake told in one line."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from optimum.utils import logging
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, modeling_utils
from transformers.utils.hub import cached_file, extract_commit_hash

from .backbone import model_class_of
from .configuration import PruningConfig
from .errors import UserInputError, first_line, is_out_of_memory
from .memory import give_back_at_once
from .quantization import computing_as_stored, quantized
from .quiet import quiet


logger = logging.get_logger("optimum.mllm_prune.loading")


def load_config(model_id: str, **hub: Any) -> PreTrainedConfig:
    """The config of a vision-language model.

    Args:
        model_id: Hub id or local folder.
        hub: `revision`, `token`, `cache_dir`.

    Raises:
        UserInputError: there is no such model, it needs code of its own, its config cannot be read, or it is not a
            vision-language model.
    """
    folder = Path(model_id)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserInputError(f"'{model_id}' holds no config.json: give the folder of a saved model, or a Hub id.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(model_id, **hub, trust_remote_code=False)
    except OSError as error:
        if folder.is_dir():
            raise UserInputError(f"the config of '{model_id}' cannot be read: {first_line(error)}") from error
        raise UserInputError(
            f"no model '{model_id}': it is neither a local folder nor reachable on the Hub ({first_line(error)})"
        ) from error
    except StrictDataclassError as error:
        raise UserInputError(f"the config of '{model_id}' cannot be read: {' '.join(str(error).split())}") from error
    except (ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise UserInputError(
                f"'{model_id}' needs code from its repository, which the pruned checkpoint would need too: give a "
                "model that transformers itself has a class for."
            ) from error
        raise UserInputError(f"the config of '{model_id}' cannot be read: {first_line(error)}") from error
    model_class_of(config)
    return config


def load_model(
    model_id: str,
    config: PreTrainedConfig,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    device_map: Any = None,
    quantization: str | None = None,
    **hub: Any,
) -> PreTrainedModel:
    """The model with all its weights, in eval mode.

    Args:
        model_id: Hub id or local folder.
        config: its config.
        dtype: number format of the weights; "auto" as saved.
        device: where to put the whole model; by default the first GPU, else the CPU.
        device_map: how to spread it instead, as in `from_pretrained`.
        quantization: "8bit" or "4bit" to look at it only, its linear maps held by bitsandbytes in so many bits.
        hub: `revision`, `token`, `cache_dir`.

    Raises:
        UserInputError: the weights are absent, damaged, incomplete, or do not fit on the device, or bitsandbytes is
            not installed.
    """
    if device is not None and device_map is not None:
        raise UserInputError("device and device_map both say where the model goes: give one of them.")
    check_device(device)
    if quantization is not None:
        # It cannot be moved once it is loaded.
        device_map = device_map or {"": device or first_device()}
        hub["quantization_config"] = quantized(quantization, config, device_map)
    # Only a device map can leave weights on disk.
    folder = device_map and TemporaryDirectory(prefix="mllm-prune-", ignore_cleanup_errors=True)
    try:
        with quiet(), _read_not_mapped(device_map), warnings.catch_warnings():
            # A parameter between the modules is named by itself.
            warnings.filterwarnings("ignore", message="The following device_map keys do not match any submodules")
            # Weights of another shape are told by name below, which transformers does only in its report.
            model, found = model_class_of(config).from_pretrained(
                model_id,
                config=config,
                dtype=dtype,
                device_map=device_map,
                offload_folder=folder and folder.name,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **hub,
            )
        if device_map is None:
            model = model.to(device or first_device())
        else:
            # It is removed together with the model.
            model._offload_folder = folder
    except (SafetensorError, EOFError) as error:
        raise UserInputError(
            f"the weights of '{model_id}' are damaged or cut short ({first_line(error)}): fetch them again."
        ) from error
    except OSError as error:
        raise UserInputError(_without_weights(model_id, error)) from error
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise UserInputError(f"'{model_id}' cannot be loaded: {first_line(error)}") from error
    _refuse_incomplete(model_id, found)
    if found["unexpected_keys"]:
        strange = sorted(str(key) for key in found["unexpected_keys"])
        logger.warning(f"{len(strange)} tensors belong to no weight and are left out (first: {strange[0]}).")
    return computing_as_stored(model.eval())


def first_device() -> str:
    """Where a model goes if nothing else is said: the first GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str | None) -> None:
    """Raise UserInputError where no model can be put on a device: it is unknown, or not in this machine."""
    try:
        if device is None or torch.empty(0, device=device).device.type != "meta":
            return
        reason = "it holds no weights"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
    raise UserInputError(f"device '{device}' cannot be used ({reason}): use cpu, or a GPU that torch can see.")


def commit_of(model_id: str, **hub: Any) -> str | None:
    """Commit hash that a Hub model is read at; None for a local one. `hub` as for `load_config`."""
    if Path(model_id).exists():
        return None
    with quiet():
        return extract_commit_hash(cached_file(model_id, "config.json", **hub), None)


def public_name(name: str) -> str:
    """What may be written down of an id or a path: a Hub id whole, of a local path its last part.

    A path need not exist: the output folder does not yet when the command line is written down.
    """
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).exists()
    return Path(os.path.abspath(name)).name if is_path else name


def with_origin(
    config: PruningConfig, base_model: str | None, base_model_revision: str | None, dataset: Any
) -> PruningConfig:
    """A copy of the config with what is known of model and data written into it, local paths left out."""
    local = base_model is None or Path(base_model).exists()
    config = PruningConfig.from_dict(config.to_dict())
    config.base_model = None if local else base_model
    config.base_model_revision = None if local else base_model_revision
    if dataset is not None and config.dataset is None:
        config.dataset = str(dataset) if isinstance(dataset, (str, Path)) else "rows in memory"
    if config.dataset is not None:
        config.dataset = public_name(config.dataset)
    return config


@contextmanager
def _read_not_mapped(device_map: Any) -> Iterator[None]:
    """Inside, where some weights are to stay on disk, transformers reads files of weights and does not map them: what
    was looked at of a mapped file counts as memory taken until all is loaded. What is free is given back from then on.
    """
    own = modeling_utils.safe_open
    if isinstance(device_map, dict) and "disk" in device_map.values():
        give_back_at_once()
        modeling_utils.safe_open = lambda *args, **options: own(*args, **options | {"backend": "pread"})
    try:
        yield
    finally:
        modeling_utils.safe_open = own


def _without_weights(model_id: str, error: OSError) -> str:
    pickled = [file.name for file in sorted(Path(model_id).glob("*.bin")) if "training_args" not in file.name]
    if not pickled and "cannot be loaded with `safetensors`" not in str(error):
        return f"the weights of '{model_id}' cannot be loaded: {first_line(error)}"
    named = f" ({pickled[0]})" if pickled else ""
    return (
        f"the weights of '{model_id}' are pickled{named}, which may run any code: convert them, by loading the model "
        "with transformers where you trust it and saving it with save_pretrained."
    )


def _refuse_incomplete(model_id: str, found: dict[str, Any]) -> None:
    mismatched = [name for name, *_ in found["mismatched_keys"]]
    for what, keys in (("has in another shape", mismatched), ("lacks", found["missing_keys"])):
        if keys:
            first = sorted(str(key) for key in keys)[0]
            raise UserInputError(
                f"the checkpoint '{model_id}' {what} {len(keys)} of the model's weights (first: {first}); "
                "loaded so, they would be random."
            )
