"""Which tensors a config key drives: two models on the meta device, one key apart, their shapes compared."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .skeleton import Shapes, shapes_of, skeleton
from .text_config import ConfigRejectedError, NotExpressibleError, edited, text_config, text_value
from .units import Axis, Group, Segment, Site


# What configs call the width of the MLP.
MLP_WIDTHS = ("intermediate_size", "ffn_dim")


@dataclass(frozen=True)
class Ground:
    """What every probe starts from: the class, its config, the shapes it builds and where the layers stand."""

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    shapes: Shapes
    layers_prefix: str

    def shapes_with(self, changes: dict[str, int], outer: dict[str, Any] | None = None) -> Shapes:
        """Shapes of the model with these text config values, and `outer` ones beside them.

        Raises:
            ConfigRejectedError or NotExpressibleError.
        """
        config = edited(self.config, changes, outer=outer)
        try:
            return shapes_of(skeleton(self.model_class, config))
        except (ValueError, RuntimeError, AssertionError, TypeError, ZeroDivisionError) as error:
            raise NotExpressibleError(f"the model cannot be built with {changes}: {error}") from error


def probe_channels(ground: Ground) -> Group:
    """The MLP blocks that `intermediate_size`, or whatever the config calls it, drives."""
    widths = {key: text_value(ground.config, key) for key in MLP_WIDTHS}
    key = next((key for key, width in widths.items() if width is not None), None)
    if key is None:
        raise NotExpressibleError(f"its config has no MLP width under a known name ({', '.join(MLP_WIDTHS)})")
    width = widths[key]
    if not isinstance(width, int) or isinstance(width, bool):
        raise NotExpressibleError(f"its config has no single {key} for all layers")
    changes = ({key: n} for n in (width - _step(width), width // 2, width * 2))
    return _probe(ground, "channels", {key: width}, width, "MLP channel", changes)


def probe_heads(ground: Ground, unit: str = "auto") -> Group:
    """The attention blocks that the head counts drive.

    Args:
        unit: "group" (whole key-value groups), "query" (query heads, as many in every group), "auto" (groups where
            there is more than one).
    """
    heads, groups = head_counts(ground.config)
    if text_value(ground.config, "num_kv_shared_layers"):
        raise NotExpressibleError("some of its layers reuse the keys and values of others")
    if unit == "group" and groups == 1 and heads > 1:
        raise NotExpressibleError("all its query heads share one key-value head: remove query heads instead")
    if unit == "query" or (unit == "auto" and groups == 1):
        keys, units, word = {"num_attention_heads": heads}, heads, "query head"
        per_group = heads // groups
        changes = ({"num_attention_heads": n * groups} for n in (*range(per_group - 1, 0, -1), 2 * per_group))
    else:
        keys = {"num_attention_heads": heads}
        if text_value(ground.config, "num_key_value_heads") is not None:
            keys["num_key_value_heads"] = groups
        units, word = groups, "attention head" if heads == groups else "key-value group"
        changes = (
            {key: value // groups * n for key, value in keys.items()} for n in (*range(groups - 1, 0, -1), 2 * groups)
        )
    fixed = {"head_dim": head_dim(ground.config)}
    found = _probe(ground, "heads", keys, units, word, ({**change, **fixed} for change in changes))
    return replace(found, stride=groups if word == "query head" else 1, fixed=fixed)


def head_counts(config: PreTrainedConfig) -> tuple[int, int]:
    """(num_attention_heads, num_key_value_heads) of the decoder; the second equals the first where it is not said."""
    heads = text_value(config, "num_attention_heads")
    if not isinstance(heads, int):
        raise NotExpressibleError("its config has no single num_attention_heads for all layers")
    groups = text_value(config, "num_key_value_heads") or heads
    if not isinstance(groups, int) or heads % groups:
        raise NotExpressibleError("its query heads do not divide evenly among key-value heads")
    return heads, groups


def head_dim(config: PreTrainedConfig) -> int:
    """Channels of one attention head, said by the config or derived from the hidden size."""
    return text_value(config, "head_dim") or text_value(config, "hidden_size") // head_counts(config)[0]


def _step(width: int) -> int:
    return max(1, width // 4)


def _probe(
    ground: Ground, kind: str, keys: dict[str, int], units: int, word: str, changes: Iterator[dict[str, int]]
) -> Group:
    counting = next(iter(keys))
    reasons = []
    for change in changes:
        try:
            after = ground.shapes_with(change)
        except (ConfigRejectedError, NotExpressibleError) as error:
            reasons.append(str(error))
            continue
        if after.keys() != ground.shapes.keys():
            reasons.append(f"other tensors appear when {counting} changes")
            continue
        kept = change[counting] * units // keys[counting]
        axes = _driven_axes(ground, after, kind, keys, units, kept)
        return Group(kind, keys, units, word, _sites(ground, kind, axes))
    raise NotExpressibleError(reasons[0] if reasons else f"it has a single {word}")


def _driven_axes(ground: Ground, after: Shapes, kind: str, keys: dict[str, int], units: int, kept: int) -> list[Axis]:
    """Axes whose length follows the number of units; where the units lie in them is not said yet."""
    driven = []
    for name, shape in ground.shapes.items():
        if len(shape) != len(after[name]):
            raise NotExpressibleError(f"{name} takes another form when {'/'.join(keys)} changes")
        for dim, (old, new) in enumerate(zip(shape, after[name], strict=True)):
            if old == new:
                continue
            owned, rest = divmod((old - new) * units, units - kept)
            if rest or owned > old or owned % units:
                raise NotExpressibleError(f"{name} does not go by {'/'.join(keys)} evenly")
            driven.append(Axis(name, dim, old, units, owned))
    if not driven:
        if kind == "heads":
            raise NotExpressibleError(_derived_head_size(ground.config))
        raise NotExpressibleError(f"{text_config(ground.config).model_type} ignores {'/'.join(keys)}")
    return driven


def _derived_head_size(config: PreTrainedConfig) -> str:
    model_type = text_config(config).model_type
    return f"{model_type} derives the head size as hidden_size / num_attention_heads, so heads cannot go alone"


def _sites(ground: Ground, kind: str, driven: list[Axis]) -> tuple[Site, ...]:
    readers = [axis for axis in driven if _is_reader(ground, axis)]
    if kind == "heads":
        _refuse_other_head_sizes(ground.config, readers)
    sites = []
    for reader in readers:
        layer, home = _home(ground, reader.tensor)
        prefix = reader.tensor.rpartition(".")[0].rpartition(".")[0]
        mine = [axis for axis in driven if axis != reader and axis.tensor.startswith(home)]
        if sum(r.tensor.startswith(home) for r in readers) > 1:
            raise NotExpressibleError(f"{home.rstrip('.')} has several blocks that {kind} of the same kind feed")
        writers = tuple(_located(axis, reader, ground, kind) for axis in mine)
        _refuse_norms(ground, writers)
        sites.append(Site(prefix, layer, writers, replace(reader, segments=_contiguous(reader))))
    _refuse_homeless(driven, sites)
    return tuple(sorted(sites, key=lambda site: (site.layer is None, site.layer or 0)))


def _refuse_other_head_sizes(config: PreTrainedConfig, readers: list[Axis]) -> None:
    heads, size = head_counts(config)[0], head_dim(config)
    if not readers:
        raise NotExpressibleError(_derived_head_size(config))
    for reader in readers:
        if reader.size != heads * size:
            raise NotExpressibleError(
                f"its value heads have another size than head_dim: {reader.size / heads:g} instead of {size}"
            )


def _is_reader(ground: Ground, axis: Axis) -> bool:
    shape = ground.shapes[axis.tensor]
    return len(shape) == 2 and axis.dim == 1 and axis.owned == axis.size and axis.tensor.endswith(".weight")


def _home(ground: Ground, tensor: str) -> tuple[int | None, str]:
    """The decoder layer a tensor belongs to and that layer's prefix; outside, the block that holds its module."""
    match = re.match(re.escape(ground.layers_prefix) + r"\.(\d+)\.", tensor)
    if match:
        return int(match[1]), match[0]
    return None, tensor.rpartition(".")[0].rpartition(".")[0] + "."


def _located(axis: Axis, reader: Axis, ground: Ground, kind: str) -> Axis:
    """The axis with its segments where its length leaves no doubt; fused projections are left for an experiment."""
    plain = {reader.size, reader.units}
    if kind == "heads":
        heads, groups = head_counts(ground.config)
        plain |= {reader.size // heads * groups, heads, groups}
    if axis.owned != axis.size or axis.size not in plain:
        return axis
    return replace(axis, segments=_contiguous(axis))


def _contiguous(axis: Axis) -> tuple[Segment, ...]:
    return (Segment(0, axis.size // axis.units),)


def _refuse_norms(ground: Ground, writers: tuple[Axis, ...]) -> None:
    matrices = {axis.tensor.rpartition(".")[0] for axis in writers if len(ground.shapes[axis.tensor]) > 1}
    for axis in writers:
        module = axis.tensor.rpartition(".")[0]
        if len(ground.shapes[axis.tensor]) > 2:
            raise NotExpressibleError(f"{axis.tensor} stacks several experts in one tensor")
        if axis.tensor.endswith((".weight", ".bias")) and module not in matrices:
            raise NotExpressibleError(f"{module} normalises over all units together, so the rest would change")


def _refuse_homeless(driven: list[Axis], sites: list[Site]) -> None:
    placed = {(axis.tensor, axis.dim) for site in sites for axis in site.axes}
    for axis in driven:
        if (axis.tensor, axis.dim) not in placed:
            raise NotExpressibleError(f"{axis.tensor} goes by the same key but no linear map reads it")
