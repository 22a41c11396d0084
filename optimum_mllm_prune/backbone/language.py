"""The language backbone of a vision-language model, found from its config and shapes alone."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from ..errors import UserInputError
from .layer_lists import is_per_layer, layer_changes
from .probe import Ground, NotExpressibleError, probe_channels, probe_heads
from .skeleton import Shapes, count_backbone_parameters, count_parameters, shapes_of, skeleton
from .text_config import ConfigRejectedError, edited, text_config
from .twin import as_twin, twin_name
from .units import Axis, Group


@dataclass(frozen=True)
class Sizes:
    """What a pruned config says. None leaves a key as it is.

    Attributes:
        kept_layers: ascending original indexes of the decoder layers that stay.
        heads: units of the `heads` group that stay in every layer.
        channels: MLP channels that stay in every layer.
        twin: declare the text backbone as its numerically identical twin.
    """

    kept_layers: tuple[int, ...]
    heads: int | None = None
    channels: int | None = None
    twin: bool = False


class Backbone:
    """What the language model is made of and what its config can express; holds no weights.

    Args:
        model_class: the class that will load the checkpoint.
        config: its config.
        head_unit: "auto", "group" or "query": what the `heads` group counts.

    Raises:
        UserInputError: the model has no decoder that can be pruned.
    """

    def __init__(self, model_class: type[PreTrainedModel], config: PreTrainedConfig, head_unit: str = "auto") -> None:
        if config.is_encoder_decoder:
            raise UserInputError(
                f"{config.model_type} has an encoder-decoder backbone; only decoder-only ones are pruned."
            )
        self.model_class = model_class
        self.config = copy.deepcopy(config)
        self.head_unit = head_unit
        self.num_layers: int = text_config(config).num_hidden_layers
        self._skeleton = skeleton(model_class, config)
        self.shapes: Shapes = shapes_of(self._skeleton)
        self.layers_prefix = self._find_layers()

    @classmethod
    def of(cls, model: PreTrainedModel, head_unit: str = "auto") -> "Backbone":
        """The backbone of a model in memory."""
        return cls(type(model), model.config, head_unit)

    @cached_property
    def parameters(self) -> int:
        """Distinct parameters of the whole model."""
        return count_parameters(self._skeleton)

    @cached_property
    def backbone_parameters(self) -> int:
        """Distinct parameters of decoder, token embeddings and head."""
        return count_backbone_parameters(self._skeleton)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and shapes of all weights: the architecture that plans and scores belong to."""
        described = json.dumps([self.config.model_type, sorted(self.shapes.items())])
        return hashlib.sha256(described.encode()).hexdigest()

    @cached_property
    def channels(self) -> Group:
        """The MLP channels. Raises NotExpressibleError."""
        return probe_channels(self._ground)

    @cached_property
    def heads(self) -> Group:
        """The attention heads or key-value groups. Raises NotExpressibleError."""
        return probe_heads(self._ground, self.head_unit)

    def groups(self) -> tuple[list[Group], list[str]]:
        """The width groups that the config can express, and for each other one the reason why not."""
        found, reasons = [], []
        for kind in ("heads", "channels"):
            try:
                found.append(getattr(self, kind))
            except NotExpressibleError as error:
                reasons.append(f"{kind}: {error}")
        return found, reasons

    @cached_property
    def protected_layers(self) -> dict[int, str]:
        """Layers that must stay, with the reason."""
        vision = getattr(self.config, "vision_config", None)
        injected = len(getattr(vision, "deepstack_visual_indexes", None) or ())
        injected = min(injected, self.num_layers)
        protected = dict.fromkeys(range(injected), "vision features are added after it (DeepStack)")
        if self._cross_attention_layers and 0 not in self._cross_attention_layers:
            # Were a cross-attention layer the first, generation would take the image's length for that of the text.
            protected.setdefault(0, "the length of the cached text is read from it, so it must be self-attention")
        return protected

    @cached_property
    def layer_kinds(self) -> list[str]:
        """What each layer is, as far as the config tells by `layer_types` and cross-attention indexes."""
        kinds = getattr(text_config(self.config), "layer_types", None)
        if not is_per_layer("layer_types", kinds, self.num_layers):
            kinds = ["decoder"] * self.num_layers
        crossing = self._cross_attention_layers
        return ["cross_attention" if i in crossing else kind for i, kind in enumerate(kinds[: self.num_layers])]

    @property
    def _cross_attention_layers(self) -> Sequence[int]:
        return getattr(text_config(self.config), "cross_attention_layers", None) or ()

    def layer_of(self, tensor: str) -> int | None:
        """Index of the decoder layer that a tensor belongs to; None outside the layers."""
        prefix = self.layers_prefix + "."
        if not tensor.startswith(prefix):
            return None
        return int(tensor[len(prefix) :].partition(".")[0])

    def renamed(self, tensor: str, kept_layers: Sequence[int]) -> str | None:
        """Name of a tensor after only `kept_layers` are left; None when it goes with its layer."""
        layer = self.layer_of(tensor)
        if layer is None:
            return tensor
        if layer not in kept_layers:
            return None
        rest = tensor[len(self.layers_prefix) + 1 :].partition(".")[2]
        return f"{self.layers_prefix}.{list(kept_layers).index(layer)}.{rest}"

    def config_for(self, sizes: Sizes) -> PreTrainedConfig:
        """The config of the pruned model. Raises ConfigRejectedError."""
        changes = {}
        if len(sizes.kept_layers) < self.num_layers:
            text = text_config(self.config).to_dict()
            changes = layer_changes(text, self.num_layers, list(sizes.kept_layers))
            changes["num_hidden_layers"] = len(sizes.kept_layers)
        if sizes.heads is not None:
            changes |= self.heads.values(sizes.heads)
        if sizes.channels is not None:
            changes |= self.channels.values(sizes.channels)
        return edited(self.config, changes, as_twin if sizes.twin else None)

    def intended_shapes(self, sizes: Sizes) -> Shapes:
        """Names and shapes that the sliced weights will have."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        for axis, kept in self._narrowed(sizes):
            shapes[axis.tensor][axis.dim] = axis.size_with(kept)
        renamed = {self.renamed(name, sizes.kept_layers): tuple(shape) for name, shape in shapes.items()}
        return {name: shape for name, shape in renamed.items() if name is not None}

    def built(self, sizes: Sizes) -> PreTrainedModel:
        """The pruned model on the meta device, its shapes checked against the slices that are intended.

        Raises:
            NotExpressibleError: the config is rejected or builds other shapes than the slices have.
        """
        try:
            model = skeleton(self.model_class, self.config_for(sizes))
        except (ConfigRejectedError, ValueError, RuntimeError, IndexError, KeyError) as error:
            raise NotExpressibleError(str(error)) from error
        difference = _first_difference(self.intended_shapes(sizes), shapes_of(model))
        if difference:
            raise NotExpressibleError(difference)
        return model

    @cached_property
    def head_choices(self) -> dict[int, bool]:
        """Numbers of head units that a checkpoint can have, fewer than now: number to "needs the twin"."""
        choices = {}
        has_twin = twin_name(self.config) is not None
        for kept in range(self.heads.units - self.heads.stride, 0, -self.heads.stride):
            for twin in (False, True) if has_twin else (False,):
                if self._expressible(kept, twin):
                    choices[kept] = twin
                    break
        return choices

    def _expressible(self, heads: int, twin: bool) -> bool:
        try:
            self.built(Sizes(tuple(range(self.num_layers)), heads=heads, twin=twin))
        except NotExpressibleError:
            return False
        return True

    def _narrowed(self, sizes: Sizes) -> list[tuple[Axis, int]]:
        pairs = []
        for kept, kind in ((sizes.heads, "heads"), (sizes.channels, "channels")):
            if kept is not None:
                pairs += [(axis, kept) for site in getattr(self, kind).sites for axis in site.axes]
        return pairs

    @property
    def _ground(self) -> Ground:
        return Ground(self.model_class, self.config, self.shapes, self.layers_prefix)

    def _find_layers(self) -> str:
        found = _layer_lists(self._skeleton, self.num_layers)
        if len(found) > 1:
            fewer = skeleton(self.model_class, self.config_for_depth(self.num_layers - 1))
            found = [name for name in found if len(fewer.get_submodule(name)) == self.num_layers - 1]
        if len(found) != 1:
            raise UserInputError(
                f"No single stack of {self.num_layers} decoder layers was found in {self.model_class.__name__}."
            )
        return found[0]

    def config_for_depth(self, depth: int) -> PreTrainedConfig:
        """The config with only its first `depth` layers. Raises ConfigRejectedError."""
        return self.config_for(Sizes(tuple(range(depth))))


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


def _layer_lists(model: PreTrainedModel, num_layers: int) -> list[str]:
    decoder = model.get_decoder()
    home = next(name for name, module in model.named_modules() if module is decoder)
    return [
        f"{home}.{name}".strip(".")
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and all(any(isinstance(m, nn.Linear) for m in layer.modules()) for layer in module)
    ]


def _first_difference(intended: Shapes, built: Shapes) -> str | None:
    for name in sorted(intended.keys() | built.keys()):
        if intended.get(name) != built.get(name):
            return f"{name} would be {intended.get(name)} but the edited config builds {built.get(name)}"
    return None
