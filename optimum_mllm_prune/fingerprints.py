"""Fingerprints of what is found of a model depends on: itself, the rows, and the processor that encodes them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from .calibration.batches import make_batch
from .calibration.encoding import template_of
from .calibration.rows import Rows, synthetic_row


# Values taken of each parameter, evenly spread.
_SAMPLE = 16

# Said of how and where a model was loaded, not of what it is. Names with a leading underscore are left out as well.
_VOLATILE = {
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "attn_implementation",
    "use_cache",
    "quantization_config",
}


def config_fingerprint(config: PreTrainedConfig) -> str:
    """sha256 of a model's config, whatever it was loaded from and in whatever number format."""
    stable = _stable(json.loads(config.to_json_string(use_diff=False)))
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()


def model_fingerprint(model: PreTrainedModel, fetch: bool = True) -> str:
    """sha256 of a few weights of every parameter, in the number format in which the model is loaded.

    Args:
        model: some of its weights may be offloaded.
        fetch: whether those are looked at, too.
    """
    digest = hashlib.sha256()
    for name, sample in _samples(model, fetch):
        digest.update(name.encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


# A cache and the training that reads it ask for those of the same rows.
@lru_cache(maxsize=1)
def rows_fingerprint(rows: Rows) -> str:
    """sha256 of all columns of the rows in their order, images as they are stored: nothing is decoded.

    Of an image that is no more than a path, the path alone is looked at.

    Raises:
        UserInputError: a row cannot be read.
    """
    return _digest(piece for position in range(len(rows)) for piece in _pieces(rows.raw(position)))


def value_fingerprint(value: Any) -> str:
    """sha256 of numbers, texts, bytes and images in whatever lists and mappings."""
    return _digest(_pieces(value))


def processor_fingerprint(processor: ProcessorMixin) -> str:
    """sha256 of the chat template, and of the tensors that the processor makes of a row of noise.

    Raises:
        UserInputError: it refuses the row.
    """
    digest = hashlib.sha256(template_of(processor).encode())
    batch = make_batch(processor, [synthetic_row()])
    for name, value in sorted({**batch.inputs, "labels": batch.labels}.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, list):
        return [_stable(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: _stable(v) for k, v in value.items() if k not in _VOLATILE and not k.startswith("_")}


def _samples(model: nn.Module, fetch: bool) -> Iterator[tuple[str, Tensor]]:
    """Name and (up to 16,) fp32 of each parameter; offloaded ones are fetched module by module, or left out."""
    for home, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or (not fetch and any(parameter.is_meta for parameter in own)):
            continue
        with align_module_device(module):
            for name, parameter in module.named_parameters(recurse=False):
                values = parameter.detach().reshape(-1)
                chosen = torch.linspace(0, len(values) - 1, min(_SAMPLE, len(values)), dtype=torch.float64).long()
                yield f"{home}.{name}", values[chosen.to(values.device)].float().cpu()


def _digest(pieces: Iterable[bytes]) -> str:
    """sha256 of pieces that cannot run together."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    """A raw value as bytes, each piece with its kind in front."""
    if isinstance(value, Mapping):
        value = _without_folder(value)
        yield b"mapping %d" % len(value)
        for key in sorted(value):
            yield str(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple):
        yield b"list %d" % len(value)
        for one in value:
            yield from _pieces(one)
    elif isinstance(value, bytes):
        yield value
    elif hasattr(value, "tobytes"):
        # A PIL image or an array.
        yield f"{getattr(value, 'size', '')} {getattr(value, 'mode', '')}".encode()
        yield value.tobytes()
    else:
        yield f"{type(value).__name__} {value}".encode()


def _without_folder(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """An image as `datasets` stores it, without the folder that it was read from."""
    if set(value) != {"bytes", "path"}:
        return value
    if value["bytes"] is not None:
        return {"bytes": value["bytes"]}
    return {"path": Path(value["path"] or "").name}
