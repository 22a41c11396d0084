"""What is left after pruning, refitted to what the original computes: no training, no other architecture."""

from .refit import repair
from .result import Refit, Repair
from .rows import repair_method, rows_to_repair


__all__ = ["Refit", "Repair", "repair", "repair_method", "rows_to_repair"]
