"""Whether ours loses at most half of what the paper's method loses, without any training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from zero_shot_results import Outcome, Results

from optimum_mllm_prune.evaluation.statistics import Interval, bootstrap_interval


RATIOS, FAMILIES = (0.15, 0.3, 0.45), ("width", "layer")
# Ours may remove so much less than the paper's, as a share of the backbone, and still be compared with it.
LEEWAY = 0.01
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """The paper's method and our best at one ratio.

    Attributes:
        model: which.
        paper: the better of the paper's.
        ours: the best of ours in the same family.
        choices: from how many ours was chosen.
        margin: half of what the paper's loses less what ours loses, in percent of the original's exact match, with
            its 95 % bootstrap interval over test rows.
    """

    model: str
    paper: Outcome
    ours: Outcome
    choices: int
    margin: Interval

    @property
    def holds(self) -> bool:
        """Whether ours loses at most half; nothing where the paper's loses nothing."""
        return self.margin.value >= -_ROUNDING

    @property
    def sure(self) -> bool:
        """Whether the interval says the same as the margin itself."""
        return self.margin.low >= -_ROUNDING if self.holds else self.margin.high < -_ROUNDING

    @property
    def share(self) -> float | None:
        """What ours loses in percent of what the paper's loses; None where that is nothing."""
        return 100 * self.ours.lost / self.paper.lost if self.paper.lost > _ROUNDING else None


def verdicts(results: Results) -> list[Verdict]:
    """One for each model, family and ratio of which both are there."""
    found = []
    for model in results.originals:
        for family in FAMILIES:
            for ratio in RATIOS:
                here = [o for (m, _, r), o in results.outcomes.items() if (m, r) == (model, ratio)]
                verdict = verdict_of(model, [o for o in here if o.variant.family == family])
                found += [verdict] if verdict else []
    return found


def verdict_of(model: str, outcomes: Sequence[Outcome]) -> Verdict | None:
    """Of the outcomes of a family at one ratio; None where the paper's or ours is missing."""
    papers = [outcome for outcome in outcomes if outcome.variant.paper]
    if not papers:
        return None
    paper = max(papers, key=lambda outcome: outcome.retained)
    ours = [o for o in outcomes if not o.variant.paper and o.removed >= paper.removed - LEEWAY]
    ours = [outcome for outcome in ours if outcome.seeds == paper.seeds]
    if not ours:
        return None
    best = max(ours, key=lambda outcome: outcome.retained)
    return Verdict(model, paper, best, len(ours), margin(paper, best))


def margin(paper: Outcome, ours: Outcome) -> Interval:
    """Half of what the paper's loses, 0 where it loses nothing, less what ours loses; paired over test rows."""
    columns = np.stack([paper.original, paper.right.mean(axis=0), ours.right.mean(axis=0)], axis=1)

    def value(sums: np.ndarray) -> np.ndarray:
        original, theirs, mine = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
        ahead = np.maximum(original - theirs, 0) / 2 - (original - mine)
        return 100 * np.divide(ahead, original, out=np.full(np.shape(ahead), np.nan), where=original > 0)

    return bootstrap_interval(columns, value)
