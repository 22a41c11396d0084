"""Layers chosen one after the other, each the one that is missed least now that those before it have gone."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..calibration.processes import bar
from ..calibration.progress import Progress


Trial = Callable[[int], float]
"""What it costs that a layer goes, too, once some have gone; asked of layers in ascending order."""


def greedy_scores(
    candidates: Collection[int],
    num_layers: int,
    start: Callable[[Sequence[int]], AbstractContextManager[Trial]],
    progress: Progress,
) -> Tensor:
    """Scores whose ascending order is that in which the layers go, until none may or one is left.

    A layer's score is what it cost at its turn, or, where a later one cost no more than an earlier one, the next
    larger number, so that no two tie. Layers that never went have twice the largest.

    Source: the greedy removal of Song et al., SLEB (arXiv 2402.09025), algorithm 1, which scores again after each.

    Args:
        candidates: layers that may go, m of them: m (m + 1) / 2 trials.
        num_layers: layers in all.
        start: given the layers that have gone, makes the state in which those that are left are tried.
        progress: keeps what was found, round by round.

    Returns:
        fp32 (layers,); infinite where all that was left cost infinitely much or NaN.
    """
    left, gone, scores = sorted(candidates), [], torch.zeros(num_layers)
    rounds = range(len(left), max(0, len(left) + 1 - num_layers), -1)
    highest = torch.tensor(0.0)
    found = progress.of("rounds")
    if found is not None:
        gone, scores, highest = found["gone"].tolist(), found["scores"], found["highest"]
        left, rounds = [layer for layer in left if layer not in gone], rounds[len(gone) :]
    with bar(total=sum(rounds), desc="Scoring layers", unit="trial") as trials:
        for _ in rounds:
            with start(gone) as trial:
                costs = [(_cost(trial, layer, trials), layer) for layer in left]
            cost, layer = min(costs)
            highest = torch.maximum(torch.tensor(cost), highest.nextafter(torch.tensor(math.inf)))
            scores[layer] = highest
            left.remove(layer)
            gone.append(layer)
            kept = {"gone": torch.tensor(gone), "scores": scores, "highest": highest}
            progress.keep("rounds", kept.copy, finished=len(left) == rounds.stop)
    never = [layer for layer in range(num_layers) if layer not in gone]
    scores[never] = 2 * highest
    return scores


def _cost(trial: Trial, layer: int, trials: tqdm) -> float:
    cost = trial(layer)
    trials.update()
    return math.inf if math.isnan(cost) else cost
