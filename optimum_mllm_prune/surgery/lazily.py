"""Weights of the pruned model that are sliced when they are asked for, from an original whose layers lie on disk."""

from collections.abc import Iterator, Mapping

from accelerate import dispatch_model
from torch import Tensor
from transformers import PreTrainedModel

from ..backbone import weight_of
from ..quiet import quiet
from .slicing import Cuts, slice_of


class SlicedWeights(Mapping[str, Tensor]):
    """Name in the pruned model to its weight, read anew every time and in the number format of the pruned model.

    Args:
        original: some of its weights are offloaded.
        pruned: the same, smaller.
        sources: names in the pruned model to those in the original, of all weights that are offloaded.
        cuts: what the tensors of the original lose.
    """

    def __init__(
        self, original: PreTrainedModel, pruned: PreTrainedModel, sources: Mapping[str, str], cuts: Cuts
    ) -> None:
        self.original, self.pruned, self.sources, self.cuts = original, pruned, dict(sources), cuts

    def __getitem__(self, name: str) -> Tensor:
        source = self.sources[name]
        tensor = slice_of(weight_of(self.original, source), self.cuts.get(source, []))
        # A copy also where nothing is cut: a tensor mapped from a file lies where the file has it, and kernels round
        # differently there.
        return tensor.to(self.pruned.get_parameter(name).dtype, copy=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def placed_lazily(model: PreTrainedModel, device_map: Mapping[str, object], weights: SlicedWeights) -> PreTrainedModel:
    """`model` with hooks that fetch those of its weights which a device map has on disk."""
    with quiet():
        return dispatch_model(model, dict(device_map), state_dict=weights, offload_index={}, force_hooks=True)
