"""Scores that know of the repair: the error that removing a unit leaves once what is left has been refitted."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..backbone import Site, weight_of
from ..calibration.batches import Batch, Modality
from ..calibration.processes import added_up, bar, dealt, launch
from ..calibration.progress import Progress
from ..calibration.walk import Walk
from ..products import as_precise_as
from .observer import Block, Observer, Subject, blocks, by_sample
from .surgeon import removal_errors


Grams = dict[Block, Tensor]
"""X'X (columns, columns) of the inputs of one layer's readers, fp64."""


class Reconstruction(Observer):
    """Relative error of the output of `o_proj` or `down_proj` over real tokens after a unit and all weaker ones went.

    Layer by layer, only the Gram matrices of one layer's inputs in memory; see `surgeon.removal_errors` for the
    formula. The score of the n-th weakest unit is the error that removing n leaves, so that it can be compared between
    heads and channels, and says how much of each should go.

    Of a launch of several processes, every one gathers the matrices of all layers from its rows; once they have been
    added up, as many layers as there are processes are scored at the same time.
    """

    joint = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.errors = {g.kind: torch.zeros(len(g.sites), g.units) for g in subject.groups}

    def run(self, batches: Sequence[Batch], progress: Progress) -> None:
        """Walk through the layers once, and score each before the next."""
        walk = Walk(self.subject.model, self.subject.layers, batches)
        real = [batch.modality != Modality.PADDING for batch in batches]
        layers, processes = range(len(self.subject.layers)), launch().num_processes
        own, waiting = dealt(layers), {}
        found = progress.of("layers of rows")
        if found is not None:
            self.errors = {kind: found[kind] for kind in self.errors}
            walk.go_on(found)
        for layer in bar(layers[walk.layer :], desc="Calibrating", unit="layer"):
            grams = self._grams(layer, walk, real)
            waiting = grams if layer in own else waiting
            if (layer + 1) % processes == 0 or layer == layers[-1]:
                self._score(waiting)
                waiting = {}
            progress.keep("layers of rows", lambda: self.errors | walk.state(), finished=layer == layers[-1])
        added_up(self.errors.values())

    def _grams(self, layer: int, walk: Walk, real: Sequence[Tensor]) -> Grams:
        """Go on to the next layer; the matrices of this one."""
        sites = self._sites(layer)
        grams = {site: _nothing(site[2], self.subject) for site in sites}
        readers = [self.subject.model.get_submodule(site.reader_module) for _, _, site in sites]
        adds = [partial(_add, grams[site], None if site[2].layer is None else real) for site in sites]
        walk.advance(dict(zip(readers, adds, strict=True)))
        added_up(grams.values())
        return grams

    def _score(self, grams: Grams) -> None:
        for (kind, index, site), gram in grams.items():
            weight = weight_of(self.subject.model, site.reader.tensor)
            self.errors[kind][index] = removal_errors(gram, weight, site.reader.units).float().cpu()

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind, in (0, 1]."""
        return self.errors

    def _sites(self, layer: int) -> list[Block]:
        """Those of a layer; with the first layer also those outside the decoder, which run before or in every pass."""
        return [block for block in blocks(self.subject) if (block[2].layer or 0) == layer]


def _nothing(site: Site, subject: Subject) -> Tensor:
    device = subject.model.get_submodule(site.reader_module).weight.device
    device = subject.model.device if device.type == "meta" else device
    return torch.zeros(site.reader.size, site.reader.size, dtype=torch.float64, device=device)


def _add(gram: Tensor, real: Sequence[Tensor] | None, number: int, states: Tensor) -> None:
    # Blocks outside the decoder see image features only.
    states, here = by_sample(states, None if real is None else real[number])
    x = states[here.bool()].float()
    with as_precise_as(states):
        gram += (x.T @ x).to(gram)
