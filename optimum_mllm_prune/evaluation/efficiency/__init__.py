"""Efficiency before and after: size, operations, speed and memory, side by side."""

from .measure import Loaded, measure_efficiency
from .plots import plot_memory
from .report import EfficiencyReport
from .table import efficiency_rows, markdown_table


__all__ = ["EfficiencyReport", "Loaded", "efficiency_rows", "markdown_table", "measure_efficiency", "plot_memory"]
