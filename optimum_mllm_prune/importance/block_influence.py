"""Block Influence: how far a layer turns the residual stream."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.hooks import RemovableHandle

from .observer import Observer, Subject, by_sample


class BlockInfluence(Observer):
    """Mean over real tokens of 1 - cos(h_in, h_out), h the residual stream entering and leaving a layer.

    Source: Men et al., ShortGPT (arXiv 2403.03853), equation 1. Taken with hooks on the layers, because the last of
    `output_hidden_states` comes after the final norm, and in fp32, because fp16 dot products overflow.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.total = torch.zeros(len(subject.layers), dtype=torch.float64)
        self.tokens = torch.zeros(len(subject.layers), dtype=torch.float64)

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a layer."""
        return [
            layer.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(self.subject.layers)
        ]

    def scores(self) -> dict[str, Tensor]:
        """{"layers": (layers,)}, in [0, 2]."""
        return {"layers": (self.total / self.tokens.clamp(min=1)).float()}

    def _hook(self, index: int) -> callable:
        def after(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            leaving = output if isinstance(output, Tensor) else output[0]
            before, real = by_sample(entering, self.real)
            turned = 1 - cosine_similarity(before, by_sample(leaving, self.real)[0], dim=-1)
            self.total[index] += turned[real].double().sum().cpu()
            self.tokens[index] += real.sum().cpu()

        return after
