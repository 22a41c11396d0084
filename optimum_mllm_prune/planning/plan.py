"""A plan is data: what goes, by original index, and what the model will weigh."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..backbone import Backbone, Group, NotExpressibleError, Sizes
from ..backbone.twin import twin_name
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..importance.registry import metrics_for
from ..json_types import fits, in_words


PLAN_NAME = "pruning_plan.json"
FORMAT = 1
METHODS = ("layer", "width", "mixed", "hidden")


@dataclass(frozen=True)
class PruningPlan:
    """What is removed and what is left. Plain data: JSON and back, to be written, read, edited and replayed.

    Attributes:
        method: "layer", "width", "mixed" or "hidden".
        importance: name of the metric.
        model: {"model_type", "class", "fingerprint", "base_model", "base_model_revision"} of the original.
        num_layers: decoder layers of the original.
        removed_layers: original indexes, ascending.
        head_unit: "group" or "query": what `removed_heads` counts.
        removed_heads: module name of each attention block to the units it loses; empty when none go.
        removed_channels: module name of each MLP block to the channels it loses; empty when none go.
        twin: model type that the text backbone is declared as; None when it keeps its own.
        config_changes: text config keys to their new values.
        parameters: {"before", "after", "backbone_before", "backbone_after"}.
        ratio: {"requested", "achieved"}, shares of the backbone's parameters.
        notes: how the sizes were chosen, in words.
        scores: fingerprint of the scores; None where none were needed.
        config: the PruningConfig, as a dict.
        command: the command line, where there was one.
        format: version of this form.
        removed_hidden: dimensions of the residual stream that go, the same everywhere; empty when none go.
        removed_projector: module name of each projector whose inner width is the hidden size too to the inner channels
            it loses, as many; empty when none go.
        norm_factors: module name of norms over the residual stream to what they are multiplied by, so that they give
            of fewer dimensions what they gave; empty for none.
    """

    method: str
    importance: str
    model: dict[str, str | None]
    num_layers: int
    removed_layers: list[int]
    head_unit: str
    removed_heads: dict[str, list[int]]
    removed_channels: dict[str, list[int]]
    twin: str | None
    config_changes: dict[str, Any]
    parameters: dict[str, int]
    ratio: dict[str, float]
    notes: list[str] = field(default_factory=list)
    scores: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    format: int = FORMAT
    removed_hidden: list[int] = field(default_factory=list)
    removed_projector: dict[str, list[int]] = field(default_factory=dict)
    norm_factors: dict[str, float] = field(default_factory=dict)

    @property
    def kept_layers(self) -> list[int]:
        """Original indexes of the layers that stay, ascending: layer j of the pruned model was `kept_layers[j]`."""
        return [layer for layer in range(self.num_layers) if layer not in set(self.removed_layers)]

    def kept_hidden(self, size: int) -> list[int]:
        """Dimensions that stay of a residual stream of `size`, ascending."""
        gone = set(self.removed_hidden)
        return [dimension for dimension in range(size) if dimension not in gone]

    def to_json(self) -> str:
        """The plan as JSON text, one line for each list of indexes."""
        return _compact(json.dumps(asdict(self), indent=2, ensure_ascii=False))

    def save(self, folder: Path) -> None:
        """Write `pruning_plan.json`."""
        (folder / PLAN_NAME).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, data: Any) -> "PruningPlan":
        """The plan that a dict describes.

        Raises:
            UserInputError: a key is missing or unknown, a value of another type, or the plan of another format.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or not {"method", "removed_layers", "model"} <= data.keys():
            raise UserInputError("the plan is not a pruning plan: give the pruning_plan.json that a run has written.")
        strange = sorted(data.keys() - known)
        missing = sorted(f.name for f in fields(cls) if f.name not in data and f.name in _REQUIRED)
        if strange or missing:
            raise UserInputError(f"the plan has unknown keys {strange} and lacks {missing}: write it again.")
        for name, kind in sorted(get_type_hints(cls).items()):
            if name in data and not fits(data[name], kind):
                raise UserInputError(f"the plan's {name} must be {in_words(kind)}: write it again.")
        if data.get("format", FORMAT) != FORMAT:
            raise UserInputError(f"the plan has format {data['format']}, this version reads {FORMAT}: write it again.")
        if data["method"] not in METHODS:
            raise UserInputError(
                f"the plan's method '{data['method']}' is none of {', '.join(METHODS)}: write it again."
            )
        if data["importance"] not in metrics_for(data["method"]):
            raise UserInputError(
                f"the plan's importance '{data['importance']}' does not go with its method '{data['method']}': "
                "write it again."
            )
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a plan from a file, or from the folder that holds `pruning_plan.json`.

        Raises:
            UserInputError: there is none, or it is not a plan.
        """
        path = Path(path)
        file = path / PLAN_NAME if path.is_dir() else path
        if not file.is_file():
            raise UserInputError(f"no plan at '{path}': give a {PLAN_NAME} or the folder that holds it.")
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserInputError(f"the plan '{file.name}' is not JSON ({error}).") from error

    def sizes(self, backbone: Backbone) -> Sizes:
        """What the pruned config will say, checked against the model.

        Raises:
            UserInputError: the plan is of another model, or its indexes do not fit it.
        """
        if self.model.get("fingerprint") != backbone.fingerprint:
            raise UserInputError(
                f"the plan was made for another model ({self.model.get('model_type')}, "
                f"{self.parameters.get('before', 0):,} parameters): plan again for this one."
            )
        if self.num_layers != backbone.num_layers:
            raise UserInputError(f"the plan's num_layers is {self.num_layers}, the model has {backbone.num_layers}.")
        if self.twin not in (None, twin_name(backbone.config)):
            raise UserInputError(f"the plan's twin '{self.twin}' is none of this model: remove it or plan again.")
        _check_indexes("removed_layers", self.removed_layers, backbone.num_layers)
        for layer, reason in sorted(self._must_stay(backbone).items()):
            if layer in self.removed_layers:
                raise UserInputError(f"the plan removes layer {layer}: {reason}.")
        if self.merges and (self.removed_heads or self.removed_channels):
            raise UserInputError("the plan merges layers and narrows those that stay: take out one of the two.")
        return Sizes(
            kept_layers=tuple(self.kept_layers),
            heads=_units_left(self.removed_heads, backbone, "heads"),
            channels=_units_left(self.removed_channels, backbone, "channels"),
            twin=self.twin is not None,
            hidden=self._hidden_left(backbone),
        )

    @property
    def left(self) -> float:
        """Share of the model's parameters that stays."""
        return self.parameters["after"] / self.parameters["before"]

    @property
    def merges(self) -> bool:
        """Whether the layers that go are merged into layers that stay."""
        return bool(self.config) and PruningConfig.from_dict(self.config).merges

    def _must_stay(self, backbone: Backbone) -> dict[int, str]:
        unmergeable = backbone.unmergeable_layers if self.merges else {}
        return unmergeable | backbone.must_stay(self.removed_layers)

    def removed_units(self, group: Group) -> dict[str, list[int]]:
        """Module name of each block of a group to the units it loses."""
        return getattr(self, f"removed_{group.kind}")

    def _hidden_left(self, backbone: Backbone) -> int | None:
        if not self.removed_hidden:
            for key in ("removed_projector", "norm_factors"):
                if getattr(self, key):
                    raise UserInputError(f"the plan's {key} goes with removed_hidden, which is empty.")
            return None
        hidden = _of(backbone, "hidden")
        _check_indexes("removed_hidden", self.removed_hidden, hidden.size)
        for name, factor in self.norm_factors.items():
            if name not in hidden.norms or not 0 < factor < math.inf:
                raise UserInputError(
                    f"the plan's norm_factors of {name} must be of a norm of the model, and greater than 0: {factor}."
                )
        left = hidden.size - len(self.removed_hidden)
        inner = _counted(self.removed_projector, hidden.projector) if hidden.projector else None
        if inner not in (left, None) or (inner is None and self.removed_projector):
            raise UserInputError(
                f"the plan removes {len(self.removed_hidden)} dimensions of the hidden size: removed_projector must "
                "name as many inner channels, or none where the model has none."
            )
        return left


_REQUIRED = {f.name for f in fields(PruningPlan) if f.default is MISSING and f.default_factory is MISSING}


def _units_left(removed: dict[str, list[int]], backbone: Backbone, kind: str) -> int | None:
    return _counted(removed, _of(backbone, kind)) if removed else None


def _of(backbone: Backbone, kind: str) -> Any:
    """The backbone's group of a kind. Raises UserInputError where there is none."""
    try:
        return getattr(backbone, kind)
    except NotExpressibleError as error:
        raise UserInputError(f"the plan removes {kind}, which this model cannot: {error}") from error


def _counted(removed: dict[str, list[int]], group: Group) -> int:
    """How many units of a group every block keeps. Raises UserInputError where the indexes do not fit it."""
    kind = group.kind
    names = {site.prefix for site in group.sites}
    if names != removed.keys():
        raise UserInputError(f"the plan's removed_{kind} must name every block: {sorted(names ^ removed.keys())[0]}.")
    for name, units in removed.items():
        _check_indexes(f"removed_{kind} of {name}", units, group.units)
        size = group.units // group.stride
        if len({sum(unit // size == number for unit in units) for number in range(group.stride)}) > 1:
            raise UserInputError(
                f"the plan's removed_{kind} of {name} must be as many from each of {group.stride} key-value groups."
            )
    counts = {len(units) for units in removed.values()}
    if len(counts) != 1:
        raise UserInputError(f"the plan's removed_{kind} differ in number between layers: a config cannot say that.")
    return group.units - counts.pop()


def _check_indexes(what: str, indexes: list[int], limit: int) -> None:
    numbers = isinstance(indexes, list) and all(isinstance(i, int) for i in indexes)
    ascending = numbers and indexes == sorted(set(indexes))
    if not ascending or any(not 0 <= i < limit for i in indexes) or len(indexes) >= limit:
        raise UserInputError(
            f"the plan's {what} must be ascending numbers from 0 to {limit - 1}, and not all of them."
        )


def _compact(text: str) -> str:
    """Indented JSON with every list of numbers on one line."""
    lines, numbers = [], None
    for line in text.split("\n"):
        if numbers is not None:
            if line.strip().startswith("]"):
                lines[-1] += " ".join(numbers) + line.strip()
                numbers = None
            else:
                numbers.append(line.strip())
        elif line.endswith("["):
            lines.append(line)
            numbers = []
        else:
            lines.append(line)
    return "\n".join(lines)
