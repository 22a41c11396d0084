"""Scores that know of the repair: the error that removing a unit leaves once what is left has been refitted."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backbone import Site, weight_of
from ..calibration.batches import Batch, Modality
from ..calibration.walk import Walk
from .observer import Observer, Subject, by_sample
from .surgeon import removal_errors


class Reconstruction(Observer):
    """Relative error of the output of `o_proj` or `down_proj` over real tokens after a unit and all weaker ones went.

    Layer by layer, only the Gram matrices of one layer's inputs in memory; see `surgeon.removal_errors` for the
    formula. The score of the n-th weakest unit is the error that removing n leaves, so that it can be compared between
    heads and channels, and says how much of each should go.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.errors = {g.kind: torch.ones(len(g.sites), g.units) for g in subject.groups}

    def run(self, batches: Sequence[Batch]) -> None:
        """Walk through the layers once, and score each before the next."""
        walk = Walk(self.subject.model, self.subject.layers, batches)
        real = [batch.modality != Modality.PADDING for batch in batches]
        for layer in tqdm(range(len(self.subject.layers)), desc="Calibrating", unit="layer"):
            grams: dict[tuple[str, int], Tensor] = {}
            sites = self._sites(layer)
            readers = [self.subject.model.get_submodule(site.reader_module) for _, _, site in sites]
            adds = [partial(_add, grams, real, (kind, index), site.layer) for kind, index, site in sites]
            walk.advance(dict(zip(readers, adds, strict=True)))
            for kind, index, site in sites:
                weight = weight_of(self.subject.model, site.reader.tensor)
                self.errors[kind][index] = removal_errors(grams[kind, index], weight, site.reader.units).float().cpu()

    def scores(self) -> dict[str, Tensor]:
        """(sites, units) for each kind, in (0, 1]."""
        return self.errors

    def _sites(self, layer: int) -> list[tuple[str, int, Site]]:
        """Those of a layer; with the first layer also those outside the decoder, which run before or in every pass."""
        return [
            (group.kind, index, site)
            for group in self.subject.groups
            for index, site in enumerate(group.sites)
            if (site.layer or 0) == layer
        ]


def _add(
    grams: dict, real: Sequence[Tensor], key: tuple[str, int], layer: int | None, number: int, states: Tensor
) -> None:
    # Blocks outside the decoder see image features only.
    states, here = by_sample(states, None if layer is None else real[number])
    x = states[here.bool()]
    if key not in grams:
        grams[key] = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    grams[key] += (x.T @ x).to(grams[key])
