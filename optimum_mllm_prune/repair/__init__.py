"""What is left after pruning, mended by what the original has: no training, no other architecture."""

from .merge import Merge, merge
from .refit import repair
from .result import Refit, Repair
from .rows import repair_method, rows_to_repair


__all__ = ["Merge", "Refit", "Repair", "merge", "repair", "repair_method", "rows_to_repair"]
