"""What is left after pruning, mended by what the original has: no training, no other architecture."""

from .merge import Merge, merge
from .refit import Refit, Repair, repair
from .rows import repairs, rows_to_repair


__all__ = ["Merge", "Refit", "Repair", "merge", "repair", "repairs", "rows_to_repair"]
