"""How far the stream ends from where it ended, once a layer has been merged into the one before it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..backbone.merging import absorbed, merged, unmergeable, weights_of
from ..calibration.batches import Batch, Modality
from ..calibration.processes import total
from ..calibration.progress import Progress
from ..calibration.stream import forms_of, leaving, passed_by
from ..calibration.walk import Walk, output_of
from .greedy import Trial, greedy_scores
from .observer import Observer, Subject, by_sample


class Merging(Observer):
    """Mean over real tokens of 1 - cos(h, h'), h what leaves the last layer of the original and h' the same with the
    layer merged into the nearest one before it that stays: the one with the least goes, then all others again.

    Source: Yang et al., LaCo (arXiv 2402.11187): its merge of layers, and its measure, the cosine of the last hidden
    states. It merges runs of a given length until a threshold is passed; here one layer goes at a time, so that any
    number can be asked for. Layers whose weights have other names or shapes than those of the layer before them do not
    go, nor does the first.

    Of L layers that may go it makes L (L + 1) / 2 trials over all rows, each half a pass of the decoder on average, as
    what lies before the merge is kept. In memory stand the merged layers, at most half as much again as the decoder
    has, and one layer's output, the image features and the original's last hidden states of all rows.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.found = torch.zeros(len(subject.layers))

    def run(self, batches: Sequence[Batch], progress: Progress) -> None:
        """All trials."""
        layers = self.subject.layers
        weights = weights_of(layers)
        walk = Walk(self.subject.model, layers, batches)
        forms = forms_of(self.subject.model, layers, batches[0])
        original = [_last(walk, number) for number in range(len(batches))]

        def taken_up(into: int, others: Sequence[int]) -> AbstractContextManager[None]:
            return _replaced(layers[into], dict(merged(weights, into, others)))

        @contextmanager
        def start(gone: Sequence[int]) -> Iterator[Trial]:
            def trial(layer: int) -> float:
                found = absorbed({*gone, layer}, len(layers))
                into = next(into for into, others in found.items() if layer in others)
                while walk.layer < into:
                    walk.advance()
                with passed_by(layers, [layer], forms), taken_up(into, found[into]):
                    return _distance(walk, original)

            walk.rewind()
            with ExitStack() as stack:
                for into, others in absorbed(gone, len(layers)).items():
                    stack.enter_context(taken_up(into, others))
                stack.enter_context(passed_by(layers, gone, forms))
                yield trial

        candidates = set(range(len(layers))) - self.subject.protected - unmergeable(layers).keys()
        self.found = greedy_scores(candidates, len(layers), start, progress)

    def scores(self) -> dict[str, Tensor]:
        """{"layers": (layers,)}, ascending in the order in which they go."""
        return {"layers": self.found}


def _last(walk: Walk, number: int) -> Tensor:
    """What leaves the last layer at real tokens, (tokens, hidden) fp32."""
    given = leaving(walk.see(number, walk.layers[-1], output_of))
    states, real = by_sample(given, walk.batches[number].modality != Modality.PADDING)
    return states[real]


def _distance(walk: Walk, original: Sequence[Tensor]) -> float:
    """Mean over the real tokens of all processes."""
    turned = [1 - cosine_similarity(_last(walk, number), states, dim=-1) for number, states in enumerate(original)]
    turns = torch.cat(turned).double()
    return total(turns.sum().item()) / total(len(turns))


@contextmanager
def _replaced(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a module's parameters are others."""
    own = dict(module.named_parameters())
    _put(module, {name: nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()})
    try:
        yield
    finally:
        _put(module, own)


def _put(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parent, _, leaf = name.rpartition(".")
        module.get_submodule(parent).register_parameter(leaf, parameter)
