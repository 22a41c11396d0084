"""A teacher in memory: the unpruned model, which sees the images with its own eyes and never changes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...backbone import Backbone
from ...backbone.text_config import text_value
from ...errors import UserInputError
from ..recipe import Recipe
from ..tap import Tap
from ..tokens import positions
from .guidance import Guidance, LiveGuidance


class Teacher(Protocol):
    """What the trainer asks of a teacher."""

    hidden_size: int

    def require(self, recipe: Recipe, vocabulary: int) -> None:
        """Raise UserInputError where it cannot guide a student with these losses and this vocabulary."""

    def guide(self, inputs: Mapping[str, Any], modality: Tensor, rows: Tensor, recipe: Recipe) -> Guidance:
        """What it says about a batch.

        Args:
            inputs: what forward takes.
            modality: (rows, length) int8.
            rows: (rows,) int64, positions of the rows in the training data.
            recipe: what will be asked.
        """


class LiveTeacher:
    """The unpruned model in memory, in eval mode, without gradients; it may stand on other devices or be quantised.

    Args:
        model: the unpruned model.
        layers: numbers of its decoder layers that will be asked for.

    Attributes:
        hidden_size: its own.
        quantization: "8bit" or "4bit" where it is held in so many bits; None where it is not.

    Raises:
        UserInputError: it has fewer layers than that.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int] = ()) -> None:
        self.model = model.eval().requires_grad_(False)
        stack = model.get_submodule(Backbone.of(model).layers_prefix)
        if layers and max(layers) >= len(stack):
            raise UserInputError(
                f"the teacher has {len(stack)} layers and the plan tells of layer {max(layers)}: give the model that "
                "the student was pruned from."
            )
        self.hidden_size: int = text_value(model.config, "hidden_size")
        bits = [bits for bits in ("8bit", "4bit") if getattr(model, f"is_loaded_in_{bits}", False)]
        self.quantization = bits[0] if bits else None
        self._tap = Tap(model, stack, layers)

    def to(self, device: torch.device) -> None:
        """Move it, unless it is spread over devices or quantised."""
        if not getattr(self.model, "hf_device_map", None) and not getattr(self.model, "is_quantized", False):
            self.model.to(device)

    def require(self, recipe: Recipe, vocabulary: int) -> None:
        """Raise UserInputError where it has another vocabulary."""
        own = len(self.model.get_output_embeddings().weight)
        if recipe.weight("logits") and own != vocabulary:
            raise UserInputError(
                f"the teacher's vocabulary has {own:,} tokens and the student's {vocabulary:,}: logits cannot be "
                "compared; give the model that the student was pruned from."
            )

    @torch.no_grad()
    def guide(self, inputs: Mapping[str, Any], modality: Tensor, rows: Tensor, recipe: Recipe) -> Guidance:
        """Run it on the batch."""
        own = {name: self._placed(value) for name, value in inputs.items()}
        tapped = self._tap(**own)
        at_logits = positions(modality, recipe.logits_tokens).to(tapped.final.device)
        at_states = positions(modality, recipe.hidden_tokens)
        layers = {number: states[at_states.to(states.device)] for number, states in tapped.layers.items()}
        final = tapped.final[at_states.to(tapped.final.device)]
        return LiveGuidance(torch.no_grad()(tapped.head), tapped.final[at_logits], final, layers)

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
