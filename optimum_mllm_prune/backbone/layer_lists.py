"""What in a config goes by layer, and how it changes when layers are removed.

Read from the values themselves: a list of ascending layer numbers is a list of indexes, any other list as long as the
depth has one entry a layer. Only counts cannot be told from other integers, so those two kinds are named.
"""

from collections.abc import Mapping, Sequence
from typing import Any


COUNTS_FROM_THE_FRONT = ("first_k_dense_replace", "max_window_layers")
COUNTS_FROM_THE_BACK = ("num_kv_shared_layers",)


def layer_changes(text: dict[str, Any], num_layers: int, kept: Sequence[int]) -> dict[str, Any]:
    """New values of every key that goes by layer, the depth itself not included.

    Args:
        text: the text config as a dict.
        num_layers: the depth that `text` describes.
        kept: ascending original indexes of the layers that stay.
    """
    changes = {}
    for key, value in text.items():
        changed = _changed(key, value, num_layers, kept)
        if changed != value:
            changes[key] = changed
    return changes


def outer_changes(outer: Mapping[str, Any], num_layers: int, kept: Sequence[int]) -> dict[str, Any]:
    """New values of the keys beside the text config that name decoder layers, for a `kept` that has all of those."""
    changes = {}
    for key, value in outer.items():
        if named_layers(key, value, num_layers):
            changes[key] = [_renumbered(entry, kept) for entry in value]
    return changes


def named_layers(key: str, value: Any, num_layers: int) -> list[int]:
    """Decoder layers that a key beside the text config names, in a list or in pairs of a vision layer and one of them.

    Such as `spatial_target_layers` and `deepstack_layer_map` of Granite Vision; `vision_feature_layer` and its like
    name layers of the vision tower.
    """
    if not isinstance(value, (list, tuple)) or "layer" not in key or "vision" in key:
        return []
    named = [entry[-1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else entry for entry in value]
    return [i for i in named if type(i) is int and 0 <= i < num_layers]


def _renumbered(entry: Any, kept: Sequence[int]) -> Any:
    if isinstance(entry, (list, tuple)):
        return [entry[0], _renumbered(entry[1], kept)]
    # A number beyond the depth names no layer, neither before nor after.
    return kept.index(entry) if entry in kept else entry


def _changed(key: str, value: Any, num_layers: int, kept: Sequence[int]) -> Any:
    if is_layer_indexes(key, value, num_layers):
        return [kept.index(i) for i in value if i in kept]
    if is_per_layer(key, value, num_layers):
        # Entries beyond the depth belong to extra prediction layers: they stay.
        return [value[i] for i in kept] + list(value[num_layers:])
    if key == "per_layer_config" and isinstance(value, dict):
        # Its keys are padded with zeros, so that they sort as numbers do.
        digits, by_layer = max(map(len, value), default=1), {int(layer): own for layer, own in value.items()}
        return {str(new).zfill(digits): by_layer[old] for new, old in enumerate(kept) if old in by_layer}
    if key in COUNTS_FROM_THE_FRONT and isinstance(value, int):
        return sum(i < value for i in kept)
    if key in COUNTS_FROM_THE_BACK and isinstance(value, int):
        return sum(i >= num_layers - value for i in kept)
    return value


def is_per_layer(key: str, value: Any, num_layers: int) -> bool:
    """Whether `value` is a list with one entry for each layer (longer lists only where the key speaks of layers)."""
    if not isinstance(value, (list, tuple)) or key.endswith("token_id"):
        return False
    return len(value) == num_layers or (len(value) > num_layers and "layer" in key)


def is_layer_indexes(key: str, value: Any, num_layers: int) -> bool:
    """Whether `value` is a list of layer numbers, such as Mllama's `cross_attention_layers`.

    It may name every layer, as Llama 4's `moe_layers` does; of two layers, 0 and 1 are rather one flag for each.
    """
    if not isinstance(value, (list, tuple)) or "layer" not in key or not value:
        return False
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return False
    if len(value) == num_layers <= 2:
        return False
    return list(value) == sorted(set(value)) and value[0] >= 0 and value[-1] < num_layers
