"""Everything of a checkpoint that is written once it is verified: report, picture and, last, the card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backbone import Backbone
from ..importance import Scores
from ..planning import PruningPlan
from .card import CARD_NAME, model_card
from .floor import disk_rates, floor_seconds
from .importance_plot import PLOT_NAME, plot_importance
from .report import PruningReport, peak_memory
from .verification import Verification


def write_record(
    folder: Path,
    name: str,
    plan: PruningPlan,
    scores: Scores | None,
    backbone: Backbone,
    *,
    size_bytes: dict[str, int],
    verification: Verification,
    seconds: Mapping[str, float],
    calibration: dict[str, Any] | None,
    environment: dict[str, Any],
    repair: dict[str, Any] | None,
    license: str | None,
    has_processor: bool,
) -> PruningReport:
    """Write `pruning_report.json`, the picture of the scores where there are any, and the card.

    Args:
        folder: of the checkpoint.
        name: what it is to be called.
        plan: what was removed.
        scores: that the plan was made from; None where they are not known.
        backbone: of the original.
        size_bytes: of the weights, {"before", "after"}.
        verification: what the fresh process found.
        seconds: wall-clock seconds by stage.
        calibration: as in the report.
        environment: as in the report, without the rates of the disk.
        repair: as in the report.
        license: of the base model; None where it is not known.
        has_processor: whether a processor was saved.
    """
    environment = environment | disk_rates(folder)
    floor = floor_seconds(environment, backbone, plan.parameters, size_bytes, calibration, repair)
    report = PruningReport(
        parameters=plan.parameters,
        ratio=plan.ratio,
        size_bytes=size_bytes,
        notes=plan.notes,
        verification=verification,
        timings_seconds={stage: round(value, 3) for stage, value in seconds.items()},
        floor_seconds={stage: round(value, 3) for stage, value in floor.items() if stage in seconds},
        peak_memory_bytes=peak_memory(),
        calibration=calibration,
        environment=environment,
        repair=repair,
    )
    report.save(folder)
    if scores is not None:
        plot_importance(scores, plan, folder / PLOT_NAME)
    card = model_card(
        name,
        plan,
        report,
        license,
        sizes_of(plan, backbone),
        with_scores=scores is not None,
        plot=None if scores is None else PLOT_NAME,
        has_processor=has_processor,
    )
    card.save(folder / CARD_NAME)
    return report


def sizes_of(plan: PruningPlan, backbone: Backbone) -> list[tuple[str, int, int]]:
    """What the original backbone is made of, in words, how many of it there are, and how many the plan leaves."""
    left = plan.sizes(backbone)
    rows = [("decoder layers", backbone.num_layers, len(left.kept_layers))]
    if left.hidden is not None:
        rows.append(("hidden size", backbone.hidden.size, left.hidden))
    for group in backbone.groups()[0]:
        kept = left.heads if group.kind == "heads" else left.channels
        rows.append((f"{group.unit}s a layer", group.units, group.units if kept is None else kept))
    return rows
