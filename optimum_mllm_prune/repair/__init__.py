"""What is left after pruning, refitted to what the original computes: no training, no other architecture."""

from .refit import Refit, Repair, repair
from .rows import repairs, rows_to_repair


__all__ = ["Refit", "Repair", "repair", "repairs", "rows_to_repair"]
