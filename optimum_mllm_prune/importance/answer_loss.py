"""The answer loss without a layer, and without those that went before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..calibration.batches import Batch
from ..calibration.engine import answer_logits
from ..calibration.processes import total
from ..calibration.progress import Progress
from ..calibration.stream import forms_of, passed_by
from ..calibration.walk import Walk
from .greedy import Trial, greedy_scores
from .observer import Observer, Subject


class AnswerLoss(Observer):
    """Mean loss over all answer tokens without the layer, in nats: the one with the least goes, then all others again.

    Sources: Song et al., SLEB (arXiv 2402.09025), which removes layers by the loss one at a time; Kim et al.,
    Shortened LLaMA (arXiv 2402.02834), whose measure of a block is the perplexity without it. Here of the answers
    alone, as for the gradients of the other metrics.

    Of L layers that may go it makes L (L + 1) / 2 trials, each over all rows. What lies before the layer that is tried
    is the same for all later trials of a round and is kept, so that a trial is half a pass of the decoder on average;
    the vision tower runs once a batch. In memory stand one layer's output and the image features for all rows.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.found = torch.zeros(len(subject.layers))

    def run(self, batches: Sequence[Batch], progress: Progress) -> None:
        """All trials."""
        layers = self.subject.layers
        walk = Walk(self.subject.model, layers, batches)
        forms = forms_of(self.subject.model, layers, batches[0])

        @contextmanager
        def start(gone: Sequence[int]) -> Iterator[Trial]:
            def trial(layer: int) -> float:
                while walk.layer < layer:
                    walk.advance()
                with passed_by(layers, [layer], forms):
                    return _mean_loss(walk)

            walk.rewind()
            with passed_by(layers, gone, forms):
                yield trial

        candidates = set(range(len(layers))) - self.subject.protected
        self.found = greedy_scores(candidates, len(layers), start, progress)

    def scores(self) -> dict[str, Tensor]:
        """{"layers": (layers,)}, ascending in the order in which they go."""
        return {"layers": self.found}


def _mean_loss(walk: Walk) -> float:
    """Of all answer tokens of all batches, summed in fp64; of a launch, those of all processes."""
    loss, tokens = 0.0, 0
    for number, batch in enumerate(walk.batches):
        with walk.beginning_skipped(number):
            logits, answers, _ = answer_logits(walk.model, batch)
        loss += cross_entropy(logits.float(), answers, reduction="none").double().sum().item()
        tokens += len(answers)
    return total(loss) / total(tokens)
