"""What a model takes to run, from its config alone: weights, cached keys and values, activations of the prefill.

The decoder runs on the meta device, where shapes are real and memory is not, so nothing is known of any architecture:
the cache is what transformers' own cache holds afterwards, and the activations are what was alive at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..backbone import Backbone, Sizes
from ..backbone.skeleton import count_parameters
from ..backbone.text_config import text_config
from ..errors import UserInputError, first_line
from .live_memory import FusedKernels, LiveMemory


# Of a vision block, alive at once at every patch: the residual stream, its normed copy, the result of the widest map,
# that after its activation, and the block's result: less than three times what the widest map takes and gives.
_WIDEST_MAPS = 3
# How many patches to a side become one position of the text: each architecture has one of these keys, or none.
_MERGES = ("spatial_merge_size", "pooling_kernel_size", "downsample_factor")


@dataclass(frozen=True)
class Load:
    """What a model is to do.

    Attributes:
        dtype: number format of weights, cache and activations.
        batch: rows at once.
        context: positions of a row, those of its images and of the answer with them.
        images: images a row; where a processor cuts an image into tiles, every tile is one.

    Raises:
        UserInputError: a value is out of range.
    """

    dtype: torch.dtype
    batch: int = 1
    context: int = 2048
    images: int = 1

    def __post_init__(self) -> None:
        for key, least in (("batch", 1), ("context", 1), ("images", 0)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise UserInputError(f"{key} must be a whole number of at least {least}, got {value}.")
        if not self.dtype.is_floating_point:
            raise UserInputError(f"dtype must be one of floating point, such as bfloat16, got {self.dtype}.")


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes to run.

    Attributes:
        weights: of the whole model.
        cache: keys and values (or states) of all layers once the context is full; sliding windows by their length.
        activations: what else is alive at most: in the prefill of the whole context, or in the vision tower.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations


def footprint(backbone: Backbone, load: Load, sizes: Sizes | None = None) -> Footprint:
    """What a model takes to run by `generate` with the cache that transformers makes by default.

    Not counted: what a device's runtime and its allocator take beside, what a process holds without any model, and the
    scores of a vision tower whose attention is not fused.

    Args:
        backbone: of the original model.
        load: what it is to do.
        sizes: what stays of it; all by default.

    Raises:
        UserInputError: the decoder cannot run without weights, or images are cached outside the context (Mllama).
        NotExpressibleError: the config cannot express `sizes`.
    """
    if "cross_attention" in backbone.layer_kinds and load.images:
        raise UserInputError(
            "this model caches its images in cross-attention layers, how long its config does not say: "
            "count without images, or give a ratio."
        )
    model = backbone.built(sizes or Sizes(tuple(range(backbone.num_layers)))).to(load.dtype).eval()
    try:
        cache, peak = _prefill(model, load)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserInputError(
            f"the decoder of this model does not run without its weights ({first_line(error)}): give a ratio."
        ) from error
    decoding = peak - cache + _features(model, load) + _mask(load) + _logits(model, load)
    return Footprint(weight_bytes(count_parameters(model), load.dtype), cache, max(decoding, _vision(model, load)))


def weight_bytes(parameters: int, dtype: torch.dtype) -> int:
    """Bytes of so many parameters."""
    return parameters * dtype.itemsize


def _prefill(model: PreTrainedModel, load: Load) -> tuple[int, int]:
    """Bytes that the cache holds after a pass over the whole context, and the most that were alive, cache included."""
    text = text_config(model.config)
    cache = DynamicCache(config=text)
    with torch.no_grad(), LiveMemory(model) as memory, FusedKernels():
        rows = torch.empty(load.batch, load.context, text.hidden_size, dtype=load.dtype, device="meta")
        model.get_decoder().base_model(inputs_embeds=rows, past_key_values=cache, use_cache=True)
    return sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(vars(layer))), memory.peak


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, Tensor) and value.dim():
        yield value


def _features(model: PreTrainedModel, load: Load) -> int:
    """What the projector gives stays beside the rows it is copied into; the whole context at most."""
    positions = load.batch * load.context if load.images else 0
    return positions * text_config(model.config).hidden_size * load.dtype.itemsize


def _mask(load: Load) -> int:
    """Several rows are padded: a mask (batch, 1, context, context) of booleans, which kernels turn into numbers."""
    return load.batch * load.context**2 * (1 + load.dtype.itemsize) if load.batch > 1 else 0


def _logits(model: PreTrainedModel, load: Load) -> int:
    """Logits (batch, 1, vocabulary) of the last position, and the float32 copy that generation takes of them."""
    return load.batch * text_config(model.config).vocab_size * (load.dtype.itemsize + torch.float32.itemsize)


def _vision(model: PreTrainedModel, load: Load) -> int:
    """An upper estimate for tower and projector: what one block has alive, and every layer's states where one of them
    is chosen by number, since all are kept for that."""
    inside = set(model.get_decoder().modules()) | {model.get_output_embeddings()}
    maps = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
    widest = max((linear.in_features + linear.out_features for linear in maps), default=0)
    vision = getattr(model.config, "vision_config", None)
    kept = 0
    if hasattr(model.config, "vision_feature_layer"):
        kept = (vision.num_hidden_layers + 1) * vision.hidden_size
    return _patches(model.config, load) * (_WIDEST_MAPS * widest + kept) * load.dtype.itemsize


def _patches(config: PreTrainedConfig, load: Load) -> int:
    """Patches of all images: of full resolution, or as many as the whole context has room for where that is free."""
    vision = getattr(config, "vision_config", None)
    if vision is None or not load.images:
        return 0
    if getattr(vision, "image_size", None) is None or hasattr(vision, "spatial_merge_size"):
        merges = [getattr(part, key) for part in (vision, config) for key in _MERGES if hasattr(part, key)]
        return load.batch * load.context * (merges[0] if merges else 1) ** 2
    sides = zip(_pair(vision.image_size), _pair(vision.patch_size), strict=True)
    high, wide = (image // patch for image, patch in sides)
    return load.batch * load.images * (high * wide + 1)


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)
