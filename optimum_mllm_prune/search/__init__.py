"""Several plans that meet the same target, tried on held-out rows: the best one is taken."""

from .search import search


__all__ = ["search"]
