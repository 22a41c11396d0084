"""What the language model is made of, found by shape and by experiment, not by name."""

from .language import Backbone, Sizes, model_class_of
from .layout import with_layouts
from .probe import NotExpressibleError
from .text_config import ConfigRejectedError
from .twin import TWIN_OF
from .units import Axis, Group, Segment, Site


__all__ = [
    "TWIN_OF",
    "Axis",
    "Backbone",
    "ConfigRejectedError",
    "Group",
    "NotExpressibleError",
    "Segment",
    "Site",
    "Sizes",
    "model_class_of",
    "with_layouts",
]
