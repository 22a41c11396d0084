"""How large a model is: parameters, bytes of its weights, and what they belong to."""

import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...backbone import Backbone
from ...backbone.finding import image_encoder
from ...errors import UserInputError


PARTS = ("vision tower", "projector", "embeddings", "attention", "MLP", "head")
"""What weights belong to. Norms count with the MLP; a head tied to the embeddings is empty."""


@dataclass(frozen=True)
class Size:
    """Static figures of a model.

    Attributes:
        parameters: distinct ones.
        weight_bytes: bytes of them in memory.
        parts: bytes of each of `PARTS`; they add up to `weight_bytes`.
        disk_bytes: bytes of the weight files; None where no folder is known.
    """

    parameters: int
    weight_bytes: int
    parts: dict[str, int]
    disk_bytes: int | None


def size_of(model: PreTrainedModel, folder: Path | None = None) -> Size:
    """Look at a model, and at the folder that it was loaded from.

    Raises:
        UserInputError: the model has no decoder layers that are found, or the folder holds no weights.
    """
    parameters = list(model.parameters())
    return Size(
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.nbytes for p in parameters),
        parts=weight_parts(model),
        disk_bytes=None if folder is None else disk_bytes(folder),
    )


def disk_bytes(folder: Path) -> int:
    """Bytes of the weight files in a folder, what else lies there not counted.

    Raises:
        UserInputError: it holds no weights, or not all that its index names.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = {SAFE_WEIGHTS_NAME}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted(names):
        if not (folder / name).is_file():
            raise UserInputError(f"'{folder}' holds no {name}: give the folder of a saved model.")
    return sum((folder / name).stat().st_size for name in names)


def weight_parts(model: PreTrainedModel) -> dict[str, int]:
    """Bytes of each of `PARTS`; every parameter counts once, where it is met first.

    In a decoder layer, attention is what takes an attention mask, whatever it is called and however it mixes tokens.
    What belongs to neither vision tower nor language model is the projector; one that transformers keeps inside the
    tower counts with it.
    """
    decoder, embeddings = model.get_decoder(), model.get_input_embeddings()
    tower = image_encoder(model)
    known = tower is not None and tower is not decoder
    layers = model.get_submodule(Backbone.of(model).layers_prefix)
    owners = {
        "vision tower": [tower] if known else [],
        "embeddings": [embeddings],
        "head": [model.get_output_embeddings()],
        "attention": [mixer for layer in layers for mixer in _token_mixers(layer)],
        "MLP": [decoder],
        "projector": [model],
    }
    seen: set[int] = set()
    found = {part: _bytes_of(modules, seen) for part, modules in owners.items()}
    return {part: found[part] for part in PARTS}


def _token_mixers(layer: nn.Module) -> Iterator[nn.Module]:
    """The modules below a decoder layer whose forward takes an attention mask."""
    for module in list(layer.modules())[1:]:
        if "attention_mask" in inspect.signature(module.forward).parameters:
            yield module


def _bytes_of(modules: Iterable[nn.Module | None], seen: set[int]) -> int:
    """Bytes of the parameters that were not seen before, which then are."""
    total = 0
    for module in modules:
        for parameter in [] if module is None else module.parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                total += parameter.nbytes
    return total
