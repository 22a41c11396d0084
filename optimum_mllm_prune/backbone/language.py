"""The language backbone of a vision-language model, found from its config and shapes alone."""

import copy
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserInputError
from .finding import layer_lists
from .hidden import Hidden, probe_hidden
from .layer_lists import layer_changes, outer_changes
from .merging import unmergeable
from .probe import Ground, probe_channels, probe_heads
from .protection import beside_the_text, last_of_each_kind, layer_kinds, protected_layers
from .sizes import Expression, Expressions, Sizes
from .skeleton import (
    Shapes,
    count_backbone_parameters,
    count_parameters,
    first_difference,
    language_tensors,
    shapes_of,
    skeleton,
)
from .text_config import ConfigRejectedError, NotExpressibleError, edited, text_config
from .twin import as_twin, twin_name
from .units import Axis, Group


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
        self._unlocated: dict[str, str] = {}
        self._skeleton = skeleton(model_class, config)
        self.shapes: Shapes = shapes_of(self._skeleton)
        self.layers_prefix = self._find_layers()
        self.expressions = Expressions(self.built)

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

    @cached_property
    def hidden(self) -> Hidden:
        """The residual stream, whose width is the hidden size. Raises NotExpressibleError."""
        return probe_hidden(self._ground, language_tensors(self._skeleton))

    def residual_stream(self) -> Hidden:
        """As `hidden`, for a user who asked for it. Raises UserInputError."""
        try:
            return self.hidden
        except NotExpressibleError as error:
            raise UserInputError(
                f"the hidden size of this architecture cannot be changed ({error}): use method 'width' or 'layer'."
            ) from error

    def groups(self) -> tuple[list[Group], list[str]]:
        """The width groups that the config can express, and for each other one the reason why not."""
        found, reasons = [], []
        for kind in ("heads", "channels"):
            try:
                if kind in self._unlocated:
                    raise NotExpressibleError(self._unlocated[kind])
                found.append(getattr(self, kind))
            except NotExpressibleError as error:
                reasons.append(f"{kind}: {error}")
        return found, reasons

    def width_groups(self) -> tuple[list[Group], list[str]]:
        """As `groups`, at least one. Raises UserInputError."""
        found, reasons = self.groups()
        if not found:
            raise UserInputError(
                f"no width of this architecture can be changed ({'; '.join(reasons)}): use method 'layer'."
            )
        return found, reasons

    def without(self, unlocated: Mapping[str, str]) -> "Backbone":
        """The same, but `groups` leaves out these kinds, whose layout is not known: kind to the reason."""
        other = copy.copy(self)
        other._unlocated = dict(unlocated)
        return other

    @cached_property
    def protected_layers(self) -> dict[int, str]:
        """Layers that must stay, whichever others go, with the reason."""
        protected = protected_layers(self.config, self.num_layers)
        last = self.num_layers - 1
        try:
            self._refuse_other_kinds(self.config_for_depth(last), range(last))
        except NotExpressibleError as error:
            protected.setdefault(last, f"without it, {error}")
        except ConfigRejectedError:
            pass
        return protected

    @cached_property
    def unmergeable_layers(self) -> dict[int, str]:
        """Layers that cannot be merged into the one before them, with the reason."""
        return unmergeable(self._skeleton.get_submodule(self.layers_prefix))

    def must_stay(self, removed: Collection[int]) -> dict[int, str]:
        """Layers that must stay when `removed` go, with the reason: the protected, and one of every kind."""
        return last_of_each_kind(self.layer_kinds, removed) | self.protected_layers

    @cached_property
    def layer_kinds(self) -> list[str]:
        """What each layer is, as far as the config tells by `layer_types` and cross-attention indexes."""
        return layer_kinds(self.config, self.num_layers)

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
        changes, outer = {}, {}
        if len(sizes.kept_layers) < self.num_layers:
            kept, text = list(sizes.kept_layers), text_config(self.config).to_dict()
            changes = layer_changes(text, self.num_layers, kept) | {"num_hidden_layers": len(kept)}
            outer = outer_changes(beside_the_text(self.config), self.num_layers, kept)
        if sizes.heads is not None:
            changes |= self.heads.values(sizes.heads)
        if sizes.channels is not None:
            changes |= self.channels.values(sizes.channels)
        if sizes.hidden is not None:
            changes |= self.hidden.values(sizes.hidden)
            outer |= self.hidden.beside(self.config.to_dict(), sizes.hidden)
        return edited(self.config, changes, as_twin if sizes.twin else None, outer)

    def narrowed_shapes(self, sizes: Sizes) -> Shapes:
        """Shapes that the sliced weights will have, all layers still there, by their names in the original."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        for axis, kept in self._narrowed(sizes):
            shapes[axis.tensor][axis.dim] = axis.size_with(kept)
        return {name: tuple(shape) for name, shape in shapes.items()}

    def intended_shapes(self, sizes: Sizes) -> Shapes:
        """Names and shapes that the sliced weights will have."""
        shapes, kept = self.narrowed_shapes(sizes), sizes.kept_layers
        return {new: shape for name, shape in shapes.items() if (new := self.renamed(name, kept)) is not None}

    def built(self, sizes: Sizes) -> PreTrainedModel:
        """The pruned model on the meta device, its shapes checked against the slices that are intended.

        Raises:
            NotExpressibleError: the config is rejected or builds other shapes than the slices have.
        """
        try:
            config = self.config_for(sizes)
            self._refuse_other_kinds(config, sizes.kept_layers)
            model = skeleton(self.model_class, config)
        except (ConfigRejectedError, ValueError, RuntimeError, IndexError, KeyError) as error:
            raise NotExpressibleError(str(error)) from error
        difference = first_difference(self.intended_shapes(sizes), shapes_of(model))
        if difference:
            raise NotExpressibleError(difference)
        return model

    def expressed(self, sizes: Sizes) -> Expression:
        """What the config of these sizes builds, for a user who asked for it. Raises UserInputError."""
        try:
            return self.expressions.of(sizes)
        except NotExpressibleError as error:
            raise UserInputError(f"this architecture's config cannot express the plan: {error}") from error

    def _refuse_other_kinds(self, config: PreTrainedConfig, kept: Sequence[int]) -> None:
        """A config class may put a layer of its own choice last (Gemma 4). Raises NotExpressibleError."""
        if len(kept) == self.num_layers:
            return
        for old, kind in zip(kept, layer_kinds(config, len(kept)), strict=True):
            if kind != self.layer_kinds[old]:
                raise NotExpressibleError(f"its config would make layer {old} one of kind '{kind}'")

    @property
    def head_numbers(self) -> range:
        """Numbers of head units that keep every group of them alike, from the present one down."""
        return range(self.heads.units, 0, -self.heads.stride)

    def needs_twin(self, heads: int) -> bool | None:
        """Whether a checkpoint of so many head units needs the twin; None where there can be none."""
        for twin in (False, True) if twin_name(self.config) is not None else (False,):
            if self._expressible(heads, twin):
                return twin
        return None

    def _expressible(self, heads: int, twin: bool) -> bool:
        try:
            self.expressions.of(Sizes(tuple(range(self.num_layers)), heads=heads, twin=twin))
        except NotExpressibleError:
            return False
        return True

    def _narrowed(self, sizes: Sizes) -> list[tuple[Axis, int]]:
        pairs = []
        for kept, kind in ((sizes.heads, "heads"), (sizes.channels, "channels")):
            if kept is not None:
                pairs += [(axis, kept) for site in getattr(self, kind).sites for axis in site.axes]
        if sizes.hidden is not None:
            inner = self.hidden.projector.sites if self.hidden.projector else ()
            pairs += [(axis, sizes.hidden) for axis in (*self.hidden.axes, *(a for site in inner for a in site.axes))]
        return pairs

    @property
    def _ground(self) -> Ground:
        return Ground(self.model_class, self.config, self.shapes, self.layers_prefix)

    def _find_layers(self) -> str:
        found = layer_lists(self._skeleton, self.num_layers)
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
