"""Block Influence: how far a layer turns the residual stream."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.hooks import RemovableHandle

from ..calibration.batches import MODALITIES
from ..calibration.stream import entering, leaving
from .observer import TINY, ByModality, Statistics, Subject, by_sample


class BlockInfluence(ByModality):
    """Mean over real tokens of 1 - cos(h_in, h_out), h the residual stream entering and leaving a layer.

    Source: Men et al., ShortGPT (arXiv 2403.03853), equation 1. Taken with hooks on the layers, because the last of
    `output_hidden_states` comes after the final norm, and in fp32, because fp16 dot products overflow.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.total, self.tokens = torch.zeros(2, len(subject.layers), len(MODALITIES), dtype=torch.float64)

    def attach(self) -> Sequence[RemovableHandle]:
        """One hook a layer."""
        return [
            layer.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(self.subject.layers)
        ]

    def accumulators(self) -> Iterable[Tensor]:
        """Of all layers."""
        return self.total, self.tokens

    def statistics(self) -> dict[str, Statistics]:
        """ "total" of 1 - cos and number of "tokens", (layers, 3)."""
        return {"layers": {"total": self.total, "tokens": self.tokens}}

    @staticmethod
    def combined(statistics: Statistics, weights: Tensor, units: int) -> Tensor:
        """(layers,), in [0, 2]."""
        return (statistics["total"] @ weights) / (statistics["tokens"] @ weights).clamp(min=TINY)

    def _hook(self, index: int) -> callable:
        def after(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
            before, modality = by_sample(entering(args, kwargs), self.modality)
            turned = 1 - cosine_similarity(before, by_sample(leaving(output), self.modality)[0], dim=-1)
            for number, one in enumerate(MODALITIES):
                here = modality == one
                self.total[index, number] += turned[here].double().sum().cpu()
                self.tokens[index, number] += here.sum().cpu()

        return after
