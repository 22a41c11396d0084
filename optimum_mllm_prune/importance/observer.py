"""What a metric is: an observer of a model during calibration that ends with one score per removable part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..backbone import Group, Hidden
from ..calibration.batches import Batch, Modality


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        model: the model with its weights.
        layers_prefix: name of the list of decoder layers.
        groups: the width groups, their layouts known.
        seed: seed of random scores.
        protected: layers that must stay.
        hidden: the residual stream, where its dimensions are scored; `groups` are then those that must go with it.
    """

    model: PreTrainedModel
    layers_prefix: str
    groups: tuple[Group, ...]
    seed: int
    protected: frozenset[int] = frozenset()
    hidden: Hidden | None = None

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.model.get_submodule(self.layers_prefix)


class Observer(ABC):
    """Base of all metrics. Scores are fp32 on the CPU, higher is more important.

    `scores` returns {"layers": (layers,)} or, for width metrics, one (sites, units) tensor for each group's kind;
    those of method "hidden" also {"hidden": (hidden,)}.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.real: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        """Told of each batch before it runs: which positions (batch, tokens) hold a real token."""
        self.real = batch.modality != Modality.PADDING

    def attach(self) -> Sequence[RemovableHandle]:
        """Hooks for the calibration passes; none where weights alone decide."""
        return ()

    def run(self, batches: Sequence[Batch]) -> None:
        """Passes of its own, for a metric that needs the "rows": batches on the model's device, model in eval mode."""
        raise NotImplementedError

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """The scores, after all batches."""


def by_sample(states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as fp32 (rows, tokens, width) and their mask (rows, tokens).

    Blocks outside the decoder see image features only, in shapes of their own: there every position is real.
    """
    if states.shape[:2] == real.shape:
        return states.detach().float(), real.to(states.device)
    flat = states.detach().float().reshape(1, -1, states.shape[-1])
    return flat, torch.ones(flat.shape[:2], dtype=torch.bool, device=flat.device)


def hook_readers(subject: Subject, hook: Callable[[str, int, Tensor], Tensor | None]) -> list[RemovableHandle]:
    """Call `hook(kind, site index, input)` before every linear map that reads units; a returned tensor replaces it."""
    handles = []
    for group in subject.groups:
        for index, site in enumerate(group.sites):
            handles.append(
                subject.model.get_submodule(site.reader_module).register_forward_pre_hook(
                    _pre_hook(hook, group.kind, index)
                )
            )
    return handles


def _pre_hook(
    hook: Callable[[str, int, Tensor], Tensor | None], kind: str, index: int
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        replacement = hook(kind, index, args[0])
        return None if replacement is None else (replacement, *args[1:])

    return before
