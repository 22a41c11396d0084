"""The proof: a saved checkpoint, loaded in a fresh process without this package, is the model in memory."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from ..backbone import is_offloaded
from ..backbone.skeleton import attention_implementations
from ..errors import VerificationError
from . import reload
from .fresh import FreshProcess


# Logits with and without a cache in float32, as a share of the largest logit. Rounding gives at most 4e-5 (measured on
# the models of the tests and the examples), the past lost in one layer of eight at least 4e-3.
CACHE_TOLERANCE = 1e-3
NEW_TOKENS = 4


@dataclass(frozen=True)
class Reference:
    """What the model in memory is and says; the model itself is not needed any more.

    Attributes:
        inputs: what forward takes, tensors by name, on the CPU; `input_ids` and `attention_mask` (rows, tokens) among
            them.
        logits: (rows, tokens, vocabulary), in the model's dtype, on the CPU.
        model_class: name of the class that users load the checkpoint with.
        dtype: of the weights.
        device_map: where it stands: names of modules, "" for all of it, to devices.
        layers: name of the list of decoder layers.
        attention: attention implementation of the whole model ("") and of each part.
        special_tokens: ids that generation must not choose.
        new_tokens: how many tokens to generate with and without a cache; 0 where these cannot be compared.
    """

    inputs: dict[str, Tensor]
    logits: Tensor
    model_class: str
    dtype: torch.dtype
    device_map: dict[str, str | int]
    layers: str
    attention: dict[str, str]
    special_tokens: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Verification:
    """What a fresh process found.

    Attributes:
        max_abs_logit_difference: at real tokens, between the loaded model and the one in memory.
        missing_keys: weights that the checkpoint lacks, or has in another shape.
        unexpected_keys: weights that the model does not know.
        generated_tokens_equal: whether greedy tokens with and without a cache are the same; False only where their
            logits tie; None where the architecture's own generation differs already, or it cannot generate.
        cache_logit_difference: the largest difference of the logits behind these tokens, computed in float32, as a
            share of the largest logit; None where it was not compared.
        without_package: whether the process never had this package.
        inputs: "image + text" or "text".
        model_class: what was loaded.
    """

    max_abs_logit_difference: float
    missing_keys: list[str]
    unexpected_keys: list[str]
    generated_tokens_equal: bool | None
    cache_logit_difference: float | None
    without_package: bool
    inputs: str
    model_class: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return asdict(self)


@torch.no_grad()
def reference_of(model: PreTrainedModel, inputs: dict[str, Tensor], layers: str, generation: bool = True) -> Reference:
    """Run the model in memory on `inputs`.

    Args:
        model: the model that is about to be saved.
        inputs: what forward takes, tensors by name.
        layers: name of the list of decoder layers.
        generation: whether generation with and without a cache can be compared (some models differ by nature).
    """
    placed = {name: value.to(model.device) for name, value in inputs.items()}
    return Reference(
        inputs={name: value.cpu() for name, value in placed.items()},
        # A cache of all layers takes more memory than one of them; generation looks at it.
        logits=model(**placed, use_cache=False).logits.cpu(),
        model_class=auto_class(model),
        dtype=model.dtype,
        device_map=_device_map(model),
        layers=layers,
        attention=attention_implementations(model.config),
        special_tokens=special_tokens(model.config),
        # Of offloaded weights every token would read all anew.
        new_tokens=NEW_TOKENS if generation and model.can_generate() and not is_offloaded(model) else 0,
    )


def verify(folder: Path, reference: Reference, has_processor: bool, fresh: FreshProcess) -> Verification:
    """Load `folder` in a fresh process in which this package cannot be imported, and compare.

    Args:
        folder: the checkpoint.
        reference: what the model in memory said.
        has_processor: whether the folder holds a processor, to be loaded as well.
        fresh: the process.

    Raises:
        VerificationError: it does not load, or differs in anything.
        MemoryError: the process ran out of memory.
    """
    found = fresh.findings(_job(fresh.scratch, folder, reference, has_processor))
    generation = found.get("generation") or {}
    verification = Verification(
        max_abs_logit_difference=found["max_abs_logit_difference"],
        missing_keys=found["missing_keys"],
        unexpected_keys=found["unexpected_keys"],
        generated_tokens_equal=generation.get("equal"),
        cache_logit_difference=generation.get("difference"),
        without_package=found["without_package"],
        inputs="image + text" if any("pixel" in name for name in reference.inputs) else "text",
        model_class=found["model_class"],
    )
    _raise_on_failure(verification, generation.get("gap", 0.0))
    return verification


def generation_is_consistent(model: PreTrainedModel, inputs: dict[str, Tensor], layers: str) -> bool:
    """Whether greedy generation gives the same with and without a cache; false where the model cannot generate.

    Logits are compared even where the tokens agree, which those of two different ways of attention do by luck.
    """
    if not model.can_generate():
        return False
    placed = {name: value.to(model.device) for name, value in inputs.items()}
    named = model.get_submodule(layers)
    found = reload.generate_both_ways(model, named, placed, special_tokens(model.config), NEW_TOKENS)
    return _within_rounding(found["difference"], found["gap"])


def special_tokens(config: PreTrainedConfig) -> list[int]:
    """Ids of tokens that stand for something other than text, as far as the config names them."""
    found = set()
    for key, value in config.to_dict().items():
        if key.endswith(("token_id", "token_index")):
            found |= set(value if isinstance(value, list) else [value])
    return sorted(i for i in found if isinstance(i, int) and i >= 0)


def auto_class(model: PreTrainedModel) -> str:
    """Name of the class that users load the checkpoint with."""
    if type(model.config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText.__name__
    return type(model).__name__


def _job(scratch: Path, folder: Path, reference: Reference, has_processor: bool) -> dict[str, Any]:
    tensors = {f"inputs.{name}": value.contiguous() for name, value in reference.inputs.items()}
    save_file(tensors | {"logits": reference.logits.contiguous()}, scratch / "reference.safetensors")
    return {
        "class": reference.model_class,
        "checkpoint": str(folder.absolute()),
        "dtype": str(reference.dtype).removeprefix("torch."),
        "attention": reference.attention,
        "device_map": reference.device_map,
        "offload_folder": str(scratch / "offloaded"),
        "layers": reference.layers,
        "threads": torch.get_num_threads(),
        "processor": has_processor,
        "tensors": str(scratch / "reference.safetensors"),
        "new_tokens": reference.new_tokens,
        "special_tokens": reference.special_tokens,
    }


def _device_map(model: PreTrainedModel) -> dict[str, str | int]:
    """Where a model stands, as plain JSON."""
    placed = getattr(model, "hf_device_map", None) or {}
    if len(set(placed.values())) < 2:
        return {"": str(model.device)}
    return {name: device if isinstance(device, int) else str(device) for name, device in placed.items()}


def _within_rounding(difference: float, gap: float) -> bool:
    """Whether logits with and without a cache are the same, and tokens differ only where two of them tie."""
    return difference <= CACHE_TOLERANCE and gap <= CACHE_TOLERANCE


def _raise_on_failure(found: Verification, gap: float) -> None:
    if found.missing_keys or found.unexpected_keys:
        raise VerificationError(
            f"the saved checkpoint has missing keys {found.missing_keys} and unexpected keys {found.unexpected_keys}"
        )
    if found.max_abs_logit_difference != 0:
        raise VerificationError(
            f"the reloaded checkpoint's logits differ from the model in memory by {found.max_abs_logit_difference}"
        )
    difference = found.cache_logit_difference
    if difference is not None and not _within_rounding(difference, gap):
        raise VerificationError(
            f"generation with a cache differs from generation without one, by {max(difference, gap):.2g} of the "
            "largest logit"
        )
    if not found.without_package:
        raise VerificationError("the fresh process imported this package")
