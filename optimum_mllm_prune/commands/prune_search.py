"""`mllm-prune --search`: what is found is shown."""

from __future__ import annotations

from ..pruner import MLLMPruner
from ..search import search
from ..search.result import Search
from .prune_choice import Choice
from .prune_rows import DrawnRows
from .summary import aligned


def searched(pruner: MLLMPruner, choice: Choice, rows: DrawnRows) -> Search:
    """Search and show what was found."""
    found = search(pruner, choice.config, rows.calibration, rows.held_out, meets=choice.meets, repair_rows=rows.repair)
    print(aligned(found.table()))
    for line in found.refused:
        print(f"left out: {line}")
    print(f"Taken: {found.best.name}.\n")
    return found
