"""What the hidden size drives: the residual stream of the decoder, and what reads and writes it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .probe import Ground, head_dim
from .skeleton import Shapes, skeleton
from .text_config import ConfigRejectedError, NotExpressibleError, edited, text_config, text_path, text_value
from .units import Axis, Group, Segment, Site


Path = tuple[str, ...]
_WHOLE = (Segment(0, 1),)


@dataclass(frozen=True)
class Hidden:
    """The residual stream: one set of dimensions, the same in every layer, in the embeddings and in the head.

    Attributes:
        size: the hidden size.
        axes: every axis that goes by the stream's dimensions, in the order of the state dict.
        norms: names of the modules that hold nothing but one number a dimension, and normalise the stream.
        projector: the inner width of projectors that is sized by the same key; its units are other ones. None where
            there is no such.
        fixed: text config keys that must be written down when the hidden size changes (`head_dim`).
        mirrors: where else in the config the hidden size stands, and must change with it.
        final_norm: the norm before the head, where the model multiplies its token embeddings by a number that goes
            with the hidden size; None where it does not.
    """

    size: int
    axes: tuple[Axis, ...]
    norms: tuple[str, ...]
    projector: Group | None = None
    fixed: dict[str, int] = field(default_factory=dict)
    mirrors: tuple[Path, ...] = ()
    final_norm: str | None = None

    def values(self, size: int) -> dict[str, int]:
        """What the text config says when `size` dimensions stay."""
        return {"hidden_size": size} | self.fixed

    def beside(self, whole: Mapping[str, Any], size: int) -> dict[str, Any]:
        """What the keys beside the text config say then; `whole` is the whole config as a dict."""
        found = dict(whole)
        for path in self.mirrors:
            found = _with(found, path, size)
        return {path[0]: found[path[0]] for path in self.mirrors}


def probe_hidden(ground: Ground, language: Collection[str]) -> Hidden:
    """The axes that go by the hidden size, once all that mirrors it moves with it.

    Args:
        ground: where the probe starts from.
        language: names of the tensors of decoder, token embeddings and head.

    Raises:
        NotExpressibleError: the config cannot say it, or it is not certain what each axis stands for.
    """
    size = text_value(ground.config, "hidden_size")
    if not isinstance(size, int) or size < 2:
        raise NotExpressibleError("its config has no single hidden_size")
    fixed = _fixed_head_size(ground)
    reasons = []
    for other in (size // 2, size - size // 4, size * 2):
        try:
            mirrors = _mirrors(ground, language, size, other, fixed)
            hidden = Hidden(size, (), (), None, fixed, mirrors)
            after = ground.shapes_with(hidden.values(other), hidden.beside(ground.config.to_dict(), other))
        except (ConfigRejectedError, NotExpressibleError) as error:
            reasons.append(str(error))
            continue
        driven = _driven(ground.shapes, after, size, other)
        scaled = _scales_embeddings(ground, hidden, other)
        stream, inner = _told_apart(ground.shapes, driven, language)
        norms = tuple(_norms(ground.shapes, stream))
        final = _final_norm(ground, norms, language) if scaled else None
        return Hidden(size, tuple(stream), norms, _projector(size, inner), fixed, mirrors, final)
    raise NotExpressibleError(reasons[0])


def _fixed_head_size(ground: Ground) -> dict[str, int]:
    """`head_dim`, written down. Raises NotExpressibleError where the code derives it from the hidden size."""
    text = text_config(ground.config)
    if text.attribute_map.get("head_dim", "head_dim") in (text.per_layer_attributes or ()):
        return {}
    size = head_dim(ground.config)
    try:
        ignored = ground.shapes_with({"head_dim": 2 * size}) == ground.shapes
    except (ConfigRejectedError, NotExpressibleError):
        ignored = False
    if ignored:
        raise NotExpressibleError(
            f"{text.model_type} derives the head size as hidden_size / num_attention_heads, so every head would change"
        )
    return {"head_dim": size}


def _mirrors(
    ground: Ground, language: Collection[str], size: int, other: int, fixed: dict[str, int]
) -> tuple[Path, ...]:
    """Where the hidden size stands beside the text config: what sizes the projector's output, and plain copies."""
    whole = ground.config.to_dict()
    text = text_path(ground.config)
    if not text:
        return ()
    places = [path for path in _places(whole, size) if path[: len(text)] != text]
    copies = tuple(path for path in places if path == ("hidden_size",))
    after = ground.shapes_with({"hidden_size": other} | fixed)
    if any(after.get(name) != shape for name, shape in ground.shapes.items() if name not in language):
        return copies
    outputs = [path for path in places if path not in copies and _sizes_an_output(ground, path, language, size, other)]
    if len(outputs) != 1:
        raise NotExpressibleError(
            "what the projector gives is sized by "
            + (" and ".join(map(".".join, outputs)) or "no key of its config alone")
        )
    return (*copies, *outputs)


def _sizes_an_output(ground: Ground, path: Path, language: Collection[str], size: int, other: int) -> bool:
    """Whether a key sizes rows of maps outside the language model and nothing that reads them."""
    outer = {path[0]: _with(ground.config.to_dict(), path, other)[path[0]]}
    try:
        after = ground.shapes_with({}, outer)
        driven = _driven(ground.shapes, after, size, other)
    except (ConfigRejectedError, NotExpressibleError):
        return False
    return bool(driven) and all(axis.dim == 0 and axis.tensor not in language for axis in driven)


def _places(whole: Any, value: int, path: Path = ()) -> Iterator[Path]:
    """Where a whole number stands in nested dicts."""
    if isinstance(whole, dict):
        for key, inner in whole.items():
            yield from _places(inner, value, (*path, str(key)))
    elif type(whole) is int and whole == value:
        yield path


def _with(whole: Mapping[str, Any], path: Path, value: int) -> dict[str, Any]:
    head, *rest = path
    return {**whole, head: _with(whole[head], tuple(rest), value) if rest else value}


def _driven(before: Shapes, after: Shapes, size: int, other: int) -> list[Axis]:
    """The axes that go from `size` to `other`. Raises NotExpressibleError where one goes otherwise."""
    if after.keys() != before.keys():
        raise NotExpressibleError("other tensors appear when hidden_size changes")
    driven = []
    for name, shape in before.items():
        changed = [dim for dim, length in enumerate(shape) if after[name][dim] != length]
        if any((shape[dim], after[name][dim]) != (size, other) for dim in changed):
            raise NotExpressibleError(f"{name} goes by hidden_size but is not as long, so what it holds is not known")
        driven += [Axis(name, dim, size, size, size, _WHOLE) for dim in changed]
    return driven


def _scales_embeddings(ground: Ground, hidden: Hidden, other: int) -> bool:
    """Whether a number that goes with the hidden size scales the token embeddings; their weights can make up for it.

    Raises:
        NotExpressibleError: such a number scales anything else.
    """
    config = edited(ground.config, hidden.values(other), outer=hidden.beside(ground.config.to_dict(), other))
    now, then = (skeleton(ground.model_class, c) for c in (ground.config, config))
    embeddings = next(name for name, module in now.named_modules() if module is now.get_input_embeddings())
    numbers, others = _numbers(now), _numbers(then)
    found = [name for name, value in numbers.items() if others.get(name) != value]
    for name in found:
        if _parent(name) != embeddings:
            raise NotExpressibleError(
                f"{name} is a number that goes with hidden_size ({numbers[name]:g}, then {others.get(name, 0):g}), so "
                "what it scales would change"
            )
    return bool(found)


def _final_norm(ground: Ground, norms: tuple[str, ...], language: Collection[str]) -> str:
    """The one norm of the language model behind its layers."""
    found = [n for n in norms if f"{n}.weight" in language and not n.startswith(f"{ground.layers_prefix}.")]
    if len(found) != 1:
        raise NotExpressibleError(
            "its token embeddings are scaled by hidden_size and no single norm is before its head"
        )
    return found[0]


def _numbers(model: nn.Module) -> dict[str, float]:
    """Every float that a module keeps as an attribute, by name."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) is float
    }


def _told_apart(shapes: Shapes, driven: list[Axis], language: Collection[str]) -> tuple[list[Axis], dict[str, Site]]:
    """The stream's axes, and by module the inner width of a projector of two maps, which goes by the same key.

    A map outside the language model whose two sides both go by the key reads units of another kind: those that the
    other maps of its module write. A bare parameter that stands alone gives the stream along its last side.
    """
    counts = {axis.tensor: sum(other.tensor == axis.tensor for other in driven) for axis in driven}
    inner: dict[str, Site] = {}
    for axis in driven:
        if counts[axis.tensor] > 1 and axis.tensor in language:
            raise NotExpressibleError(f"both sides of {axis.tensor} go by hidden_size, so what it holds is not known")
        if axis.tensor not in language and axis.dim and not _is_written_by_itself(axis, shapes, driven):
            home = _parent(_parent(axis.tensor))
            if counts[axis.tensor] != 2 or len(shapes[axis.tensor]) != 2 or home in inner:
                raise NotExpressibleError(f"what {axis.tensor} reads is not known")
            inner[home] = Site(home, None, _writers(shapes, driven, home, axis), axis)
    taken = {(axis.tensor, axis.dim) for site in inner.values() for axis in site.axes}
    return [axis for axis in driven if (axis.tensor, axis.dim) not in taken], inner


def _is_written_by_itself(axis: Axis, shapes: Shapes, driven: list[Axis]) -> bool:
    """Whether the last side of a parameter that is no module's weight is written: nothing else in its module is."""
    home = _parent(axis.tensor) + "."
    alone = sum(other.tensor.startswith(home) for other in driven) == 1
    return alone and len(shapes[axis.tensor]) == axis.dim + 1 and not axis.tensor.endswith(".weight")


def _writers(shapes: Shapes, driven: list[Axis], home: str, reader: Axis) -> tuple[Axis, ...]:
    """What the other maps of a module write."""
    own = _parent(reader.tensor)
    found = [a for a in driven if a.tensor.startswith(home + ".") and _parent(a.tensor) != own]
    maps = {_parent(a.tensor) for a in found if len(shapes[a.tensor]) > 1 and a.dim == 0}
    if not maps or any(a.dim or _parent(a.tensor) not in maps for a in found):
        raise NotExpressibleError(f"what {reader.tensor} reads is not known")
    return tuple(found)


def _projector(size: int, inner: dict[str, Site]) -> Group | None:
    return Group("projector", {}, size, "inner channel of the projector", tuple(inner.values())) if inner else None


def _norms(shapes: Shapes, stream: list[Axis]) -> Iterator[str]:
    """Modules with nothing but one number a dimension."""
    mine = {axis.tensor for axis in stream}
    for module in dict.fromkeys(_parent(axis.tensor) for axis in stream):
        own = [name for name in shapes if name.startswith(module + ".")]
        if all(name in mine and len(shapes[name]) == 1 and _parent(name) == module for name in own):
            yield module


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
