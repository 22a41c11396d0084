"""One score per removable part; one file per family of metric."""

from .observer import Observer, Subject
from .registry import METRICS, companion
from .scores import SCORES_NAME, Scores, by_layer


__all__ = ["METRICS", "SCORES_NAME", "Observer", "Scores", "Subject", "by_layer", "companion"]
