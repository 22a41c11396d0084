"""What each decoder layer is, and which of them must stay."""

from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedConfig

from .layer_lists import is_per_layer, named_layers
from .text_config import text_config, text_path, text_value


def beside_the_text(config: PreTrainedConfig) -> dict[str, Any]:
    """The keys of a config that stand beside its text part; none where it is flat."""
    return config.to_dict() if text_path(config) else {}


def layer_kinds(config: PreTrainedConfig, num_layers: int) -> list[str]:
    """What each layer is, as far as the config tells by `layer_types` and cross-attention indexes."""
    kinds = getattr(text_config(config), "layer_types", None)
    if not is_per_layer("layer_types", kinds, num_layers):
        kinds = ["decoder"] * num_layers
    crossing = _cross_attention_layers(config)
    return ["cross_attention" if i in crossing else kind for i, kind in enumerate(kinds[:num_layers])]


def protected_layers(config: PreTrainedConfig, num_layers: int) -> dict[int, str]:
    """Layers that others lean on, with the reason."""
    vision = getattr(config, "vision_config", None)
    injected = len(getattr(vision, "deepstack_visual_indexes", None) or ())
    protected = dict.fromkeys(range(min(injected, num_layers)), "vision features are added after it (DeepStack)")
    for key, value in beside_the_text(config).items():
        for layer in named_layers(key, value, num_layers):
            protected.setdefault(layer, f"vision features are added before it ({key})")
    for layer in _key_value_producers(config, num_layers):
        protected.setdefault(layer, "later layers reuse its keys and values")
    crossing = _cross_attention_layers(config)
    if crossing and 0 not in crossing:
        # Were a cross-attention layer the first, generation would take the image's length for that of the text.
        protected.setdefault(0, "the length of the cached text is read from it, so it must be self-attention")
    return protected


def last_of_each_kind(kinds: Sequence[str], removed: Collection[int]) -> dict[int, str]:
    """Layers that must stay when `removed` go, with the reason: a hybrid without attention could not generate."""
    stay = {}
    for kind in dict.fromkeys(kinds):
        layers = [i for i, other in enumerate(kinds) if other == kind]
        left = [i for i in layers if i not in removed] or layers[-1:]
        if len(left) == 1:
            stay[left[0]] = f"it is the last layer of its kind ({kind})"
    return stay


def _key_value_producers(config: PreTrainedConfig, num_layers: int) -> list[int]:
    """The last layer of each kind before those that have no keys and values of their own."""
    sharing = text_value(config, "num_kv_shared_layers") or 0
    kinds = layer_kinds(config, num_layers)[: num_layers - sharing] if sharing else []
    return list({kind: i for i, kind in enumerate(kinds)}.values())


def _cross_attention_layers(config: PreTrainedConfig) -> Sequence[int]:
    return getattr(text_config(config), "cross_attention_layers", None) or ()
