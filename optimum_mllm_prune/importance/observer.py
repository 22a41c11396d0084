"""What a metric is: an observer of a model during calibration that ends with one score per removable part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..backbone import Group, Hidden, Site, weight_of
from ..calibration.batches import MODALITIES, Batch, Modality
from ..calibration.progress import Progress


Block = tuple[str, int, Site]
"""A kind of units, the number of one of its sites, and that site."""

Statistics = dict[str, Tensor]
"""Sums over tokens, fp64 (sites, 3, ...): of image, of prompt and of answer tokens."""

# What nothing is divided by where no token has a weight.
TINY = torch.finfo(torch.float64).tiny


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

    `scores` returns {"layers": (layers,)}, with "layer_runs" (layers, layers) where runs of layers are scored, or, for
    width metrics, one (sites, units) tensor for each group's kind; those of method "hidden" also
    {"hidden": (hidden,)}.

    Attributes:
        passes: how often it wants to see all batches; its hooks are attached anew for each time.
        joint: whether its accumulators are those of all processes of a launch as soon as a batch is through, and not
            each those of the batches it has seen.
        backward: whether it listens to gradients.
    """

    passes: int = 1
    joint: bool = False
    backward: bool = False

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.modality: Tensor | None = None
        self.real: Tensor | None = None

    def begin(self, batch: Batch, again: bool = False) -> None:
        """Told of each batch before it runs: what its positions (batch, tokens) hold, and which a real token.

        Args:
            batch: the batch.
            again: whether it was told of it before, at another layer.
        """
        self.modality = batch.modality
        self.real = batch.modality != Modality.PADDING

    def modality_at(self, kind: str, index: int) -> Tensor | None:
        """What the positions that a site reads hold; None outside the decoder, where all are of images."""
        (group,) = (group for group in self.subject.groups if group.kind == kind)
        return None if group.sites[index].layer is None else self.modality

    def attach(self) -> Sequence[RemovableHandle]:
        """Hooks for the calibration passes; none where weights alone decide."""
        return ()

    def end(self) -> None:
        """Told when all batches have run, each time."""
        self.modality = self.real = None

    def run(self, batches: Sequence[Batch], progress: Progress) -> None:
        """Passes of its own, for a metric that needs the "rows": batches on the model's device, model in eval mode."""
        raise NotImplementedError

    def accumulators(self) -> Iterable[Tensor]:
        """What adds up over batches, in fp64; with it alone a new observer goes on where this one is."""
        return ()

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """The scores, after all batches."""


class ByModality(Observer):
    """Base of metrics whose scores follow from sums over tokens, kept apart by what the tokens are."""

    @abstractmethod
    def statistics(self) -> dict[str, Statistics]:
        """By kind, after all batches: "layers" or that of a group."""

    @staticmethod
    @abstractmethod
    def combined(statistics: Statistics, weights: Tensor, units: int) -> Tensor:
        """Scores fp64 (sites, units), of layers (layers,), where each token counts as its modality does.

        Args:
            statistics: of one kind.
            weights: fp64 (3,), of image, prompt and answer tokens.
            units: how many there are at each site.
        """

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind or {"layers": (layers,)}, with all tokens alike."""
        units = {group.kind: group.units for group in self.subject.groups} | {"layers": 1}
        alike = torch.ones(len(MODALITIES), dtype=torch.float64)
        return {k: self.combined(found, alike, units[k]).float() for k, found in self.statistics().items()}


def blocks(subject: Subject) -> Iterator[Block]:
    """All sites of all groups."""
    for group in subject.groups:
        for index, site in enumerate(group.sites):
            yield group.kind, index, site


def zeros(subject: Subject, per_column: bool, shape: tuple[int, ...] = (len(MODALITIES),)) -> dict[str, Tensor]:
    """For each kind fp64 (sites, *shape, units), or columns of the readers in the place of units."""
    return {
        group.kind: torch.zeros(
            len(group.sites), *shape, group.sites[0].reader.size if per_column else group.units, dtype=torch.float64
        )
        for group in subject.groups
    }


def column_norms(subject: Subject, group: Group) -> Tensor:
    """||W_:j||_2 of each reader's columns, fp64 (sites, 1, columns)."""
    weights = (weight_of(subject.model, site.reader.tensor) for site in group.sites)
    return torch.stack([weight.float().norm(dim=0).cpu() for weight in weights]).double().unsqueeze(1)


def by_sample(states: Tensor, modality: Tensor | None) -> tuple[Tensor, Tensor]:
    """Activations as fp32 (rows, tokens, width) and what these tokens are, or which are real: (rows, tokens).

    Blocks outside the decoder see image features only, in shapes of their own: there every position is a real one.
    """
    if modality is not None and states.shape[:-1].numel() == modality.numel():
        # OPT's layers flatten rows and tokens.
        return states.detach().float().reshape(*modality.shape, -1), modality.to(states.device)
    flat = states.detach().float().reshape(1, -1, states.shape[-1])
    kind = torch.int8 if modality is None else modality.dtype
    return flat, torch.full(flat.shape[:2], Modality.IMAGE, dtype=kind, device=flat.device)


def apart(states: Tensor, modality: Tensor | None) -> list[Tensor]:
    """Activations fp32 (tokens, width) of the image, of the prompt and of the answer tokens."""
    states, modality = by_sample(states, modality)
    return [states[modality == one] for one in MODALITIES]


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
