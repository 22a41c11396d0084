"""`mllm-prune --search`: what is found is shown, and left beside what comes of it."""

from __future__ import annotations

from pathlib import Path

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


def keep(found: Search | None, folder: Path) -> None:
    """Put figures and picture of a search beside what came of it."""
    if found is not None:
        found.save(folder)
