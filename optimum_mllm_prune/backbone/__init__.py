"""What the language model is made of, found by shape and by experiment, not by name."""

from .finding import model_class_of
from .hidden import Hidden
from .language import Backbone
from .layout import plain_tokens, with_layouts
from .norms import kind_of_norm, scale_gain
from .sizes import Sizes
from .text_config import ConfigRejectedError, NotExpressibleError
from .twin import TWIN_OF
from .units import Axis, Group, Segment, Site
from .weights import (
    in_memory,
    is_offloaded,
    is_quantized,
    own_head,
    refuse_offloaded,
    refuse_offloaded_outside,
    refuse_quantized,
    weight_of,
)


__all__ = [
    "TWIN_OF",
    "Axis",
    "Backbone",
    "ConfigRejectedError",
    "Group",
    "Hidden",
    "NotExpressibleError",
    "Segment",
    "Site",
    "Sizes",
    "in_memory",
    "is_offloaded",
    "is_quantized",
    "kind_of_norm",
    "model_class_of",
    "own_head",
    "plain_tokens",
    "refuse_offloaded",
    "refuse_offloaded_outside",
    "refuse_quantized",
    "scale_gain",
    "weight_of",
    "with_layouts",
]
