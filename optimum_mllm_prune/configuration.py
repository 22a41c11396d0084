"""What the user wants: `PruningConfig`."""

import math
from typing import Any

from optimum.configuration_utils import BaseConfig

from .calibration.batches import MODALITIES as TOKEN_KINDS
from .errors import UserInputError
from .importance.registry import METRICS, METRICS_OF_ERRORS, default_metric, metric_of, metrics_for
from .json_types import fits, in_words
from .version import __version__


AUTO = "auto"
METHODS = ("auto", "layer", "width", "mixed", "hidden")
MODALITIES = tuple(kind.name.lower() for kind in TOKEN_KINDS)
REPAIRS = ("auto", "none", "least-squares", "linear-map", "merge")
HEAD_UNITS = ("auto", "group", "query")
DEFAULT_RATIO = 0.15
_COUNTS = (
    "num_layers",
    "target_params",
    "num_samples",
    "batch_size",
    "channel_multiple",
    "repair_samples",
    "steps",
)
_STAMPS = {"optimum_mllm_prune_version", "optimum_version", "transformers_version"}


class PruningConfig(BaseConfig):
    """How a vision-language model is to be pruned. Keyword arguments only; everything is checked on construction.

    Args:
        method: "layer" removes whole decoder layers, "width" removes attention heads and MLP channels from every
            layer, "mixed" does both, "hidden" removes dimensions of the residual stream (`hidden_size`), the same in
            all layers, embeddings, head and projector; "auto" is "layer" when `num_layers` is given and "width"
            otherwise (the paper's choice when there is no training budget).
        ratio: share of the language backbone's parameters to remove, in (0, 1); embeddings and head count as
            backbone. 0.15 when no size is given at all.
        num_layers: number of decoder layers to remove instead of a ratio (method "layer").
        target_params: parameters of the whole model after pruning, instead of a ratio.
        layer_share: of method "mixed": the share, in [0, 1), of what goes that whole layers give; 0.5 where no share
            is given.
        hidden_share: of method "mixed": the share, in [0, 1), of what goes that dimensions of the residual stream
            give. What neither gives comes from the heads and MLP channels of the layers that stay.
        importance: name of the metric; by default "reconstruction" for width, "block_influence" for layers and
            "activation" for hidden. Of method "mixed" it scores heads and channels, and layers are scored in the same
            passes.
        num_samples: calibration rows; by default what the metric needs (10 or 50, as in the paper).
        batch_size: calibration rows a forward pass; by default all of them for "taylor", whose score is the gradient
            of the mean loss, always one for "taylor_second" and "taylor_mixed", which square each row's own gradient,
            and 8 otherwise.
        head_unit: "group" removes whole key-value groups, "query" removes query heads, as many in every group,
            "auto" is "group" unless all heads share one key-value head.
        head_share: how fast heads go compared with MLP channels, in [0, 1]: 1 takes the same share of both, as in the
            paper, 0 leaves the heads whole and takes all from the MLP; "auto" takes the split that leaves the
            least error, of an importance that measures errors ("reconstruction"). By default "auto" with such a one, 1
            with any other.
        channel_multiple: MLP widths become a multiple of this; by default the largest power of two up to 64 that
            divides the present width and moves the ratio by less than a point.
        allow_twin: whether the text backbone may be declared as its numerically identical twin where its own config
            class rejects the head count (Llama as Mistral).
        repair: "least-squares" refits in closed form the linear maps that are left, so that they give what the
            original's give, and before removed layers what is in the stream after these; "linear-map" maps only the
            output of the MLP before removed layers (method "layer"); "merge" merges every layer that goes into the
            nearest one before it that stays (method "layer"); "none" leaves all as it was cut; "auto" merges where
            the importance is "merge", and is "least-squares" where there are calibration rows.
        repair_samples: rows to refit on, of the same data.
        steps: in how many steps the plan is made (methods "layer" and "width"): each scores what the last one left,
            repaired. Worth its time where much goes.
        protected_layers: decoder layers that must stay (methods "layer" and "mixed").
        modality_weights: how much "image", "prompt" and "answer" tokens count in the scores; 1 where not named, by
            default all alike. Of metrics that keep them apart: "taylor_group", "activation", "wanda", "fluctuation"
            and "block_influence".
        gradient_checkpointing: recompute activations in gradient metrics: less memory, more time.
        seed: seed of every random choice.
        dataset: where calibration rows come from (a name, never a local path, once it is written down).
        dataset_split: split of the data set.
        base_model: Hub id of the original model; None for a local one.
        base_model_revision: its commit.

    Raises:
        UserInputError: a value is out of range, two sizes are given, or a key is unknown.
    """

    CONFIG_NAME = "pruning_config.json"
    FULL_CONFIGURATION_FILE = "pruning_config.json"

    method: str = "auto"
    ratio: float | None = None
    num_layers: int | None = None
    target_params: int | None = None
    layer_share: float | None = None
    hidden_share: float = 0.0
    importance: str | None = None
    num_samples: int | None = None
    batch_size: int | None = None
    head_unit: str = "auto"
    head_share: float | str | None = None
    channel_multiple: int | None = None
    allow_twin: bool = True
    repair: str = "auto"
    repair_samples: int = 128
    steps: int = 1
    protected_layers: list[int] | None = None
    modality_weights: dict[str, float] | None = None
    gradient_checkpointing: bool = False
    seed: int = 42
    dataset: str | None = None
    dataset_split: str | None = None
    base_model: str | None = None
    base_model_revision: str | None = None

    def __post_init__(self, **unknown: Any) -> None:
        misspelt = sorted(key for key in unknown if key not in _STAMPS)
        if misspelt:
            raise UserInputError(
                f"PruningConfig has no key {', '.join(map(repr, misspelt))}; it has: {', '.join(self._keys())}."
            )
        super().__post_init__()
        self._resolve_size()
        self._resolve_method()
        self._resolve_head_share()
        self._resolve_shares()
        self._check_ranges()
        self._check_types()
        self._check_batches()
        self._resolve_modalities()

    @classmethod
    def _keys(cls) -> list[str]:
        return [key for key in PruningConfig.__annotations__ if not key.startswith("_")]

    def to_dict(self) -> dict[str, Any]:
        """The fields and the version that wrote them, and nothing of a model's config."""
        return {key: getattr(self, key) for key in self._keys()} | {"optimum_mllm_prune_version": __version__}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: a pruning config is short and says everything."""
        return self.to_dict()

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of what goes that whole layers and dimensions of the residual stream give; the rest is width."""
        fixed = {"layer": (1.0, 0.0), "width": (0.0, 0.0), "hidden": (0.0, 1.0)}
        return fixed.get(self.method) or (self.layer_share, self.hidden_share)

    @property
    def merges(self) -> bool:
        """Whether layers that go are merged into layers that stay."""
        wanted = self.repair == "merge" or (self.repair == "auto" and self.importance == "merge")
        return wanted and self.method == "layer"

    def _resolve_size(self) -> None:
        given = [key for key in ("ratio", "num_layers", "target_params") if getattr(self, key) is not None]
        if len(given) > 1:
            raise UserInputError(f"{' and '.join(given)} both say how much to remove: give one of them.")
        if not given:
            self.ratio = DEFAULT_RATIO

    def _resolve_method(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("head_unit", self.head_unit, HEAD_UNITS)
        _one_of("repair", self.repair, REPAIRS)
        if self.method == "auto":
            self.method = "layer" if self.num_layers is not None else "width"
        if self.method != "layer" and self.num_layers is not None:
            raise UserInputError("num_layers removes whole layers: use it with method 'layer', or give a ratio.")
        self._refuse_repairs_of_others()
        if self.steps != 1 and self.method not in ("layer", "width"):
            raise UserInputError("steps go with method 'layer' or 'width': take one step, or one of these.")
        if self.importance is None:
            self.importance = default_metric(self.method)
        _one_of("importance", self.importance, sorted(METRICS))
        if self.importance not in metrics_for(self.method):
            raise UserInputError(
                f"importance '{self.importance}' does not score what method '{self.method}' removes: "
                f"use one of {', '.join(metrics_for(self.method))}."
            )

    def _refuse_repairs_of_others(self) -> None:
        if self.repair == "linear-map" and self.method != "layer":
            raise UserInputError(
                f"repair 'linear-map' stands in for removed layers: with method '{self.method}' use another repair."
            )
        if self.repair == "merge" and self.method != "layer":
            raise UserInputError("repair 'merge' merges whole layers that go: use it with method 'layer'.")

    def _resolve_head_share(self) -> None:
        measured = self.importance in METRICS_OF_ERRORS
        if self.head_share is None:
            self.head_share = AUTO if measured else 1.0
        if self.head_share == AUTO and not measured:
            raise UserInputError(
                f"head_share 'auto' weighs errors, which importance '{self.importance}' does not measure: give a "
                f"number, or use importance {' or '.join(METRICS_OF_ERRORS)}."
            )

    def _resolve_shares(self) -> None:
        if self.layer_share is None:
            self.layer_share = 0.0 if self.hidden_share else 0.5
        for key, by in (("hidden_share", "the hidden size"), ("layer_share", "whole layers")):
            value = getattr(self, key)
            if not (_is_number(value) and 0 <= value < 1):
                raise UserInputError(f"{key} must lie between 0 and 1 (0.5 takes half of it by {by}), got {value}.")
        if not 0 < self.layer_share + self.hidden_share < 1:
            raise UserInputError(
                "layer_share and hidden_share must leave something for heads and channels, and not all of it: their "
                f"sum must lie between 0 and 1, got {self.layer_share + self.hidden_share:g}."
            )

    def _check_ranges(self) -> None:
        if self.ratio is not None and not (_is_number(self.ratio) and 0 < self.ratio < 1):
            raise UserInputError(
                f"ratio must lie between 0 and 1 (0.15 removes 15 % of the language backbone), got {self.ratio}."
            )
        if self.head_share != AUTO and not (_is_number(self.head_share) and 0 <= self.head_share <= 1):
            raise UserInputError(
                "head_share must be 'auto' or lie between 0 (MLP channels alone) and 1 (as much of both), got "
                f"{self.head_share}."
            )
        for key in _COUNTS:
            value = getattr(self, key)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise UserInputError(f"{key} must be a whole number of at least 1, got {value}.")
        if not (_is_whole(self.seed) and self.seed >= 0):
            raise UserInputError(f"seed must be a whole number of at least 0, got {self.seed}.")
        layers = self.protected_layers
        if layers is not None and not (isinstance(layers, list) and all(map(_is_whole, layers))):
            raise UserInputError(f"protected_layers must be a list of layer numbers, got {layers}.")

    def _check_types(self) -> None:
        kinds = PruningConfig.__annotations__
        for key in self._keys():
            if not fits(getattr(self, key), kinds[key]):
                raise UserInputError(f"{key} must be {in_words(kinds[key])}, got {getattr(self, key)}.")

    def _check_batches(self) -> None:
        if self.batch_size not in (None, 1) and metric_of(self.importance, self.method).batch == "one":
            raise UserInputError(
                f"importance '{self.importance}' squares the gradient of each row by itself: leave batch_size out, or "
                "make it 1."
            )

    def _resolve_modalities(self) -> None:
        weights = self.modality_weights
        if weights is None:
            return
        for key in weights.keys() - set(MODALITIES):
            raise UserInputError(f"modality_weights has '{key}': it takes {', '.join(MODALITIES)}.")
        self.modality_weights = weights = dict.fromkeys(MODALITIES, 1.0) | weights
        if not all(0 <= value < math.inf for value in weights.values()) or not any(weights.values()):
            told = ", ".join(f"{key} {value:g}" for key, value in weights.items())
            raise UserInputError(f"modality_weights must be at least 0, and one above it, got {told}.")
        if not metric_of(self.importance, self.method).weighs_tokens:
            able = [name for name in metrics_for(self.method) if metric_of(name, self.method).weighs_tokens]
            raise UserInputError(
                f"importance '{self.importance}' does not keep tokens apart by modality: leave modality_weights out, "
                f"or use one of {', '.join(able)}."
            )


def _one_of(key: str, value: Any, allowed: tuple[str, ...] | list[str]) -> None:
    if value not in allowed:
        raise UserInputError(f"unknown {key} '{value}': use one of {', '.join(allowed)}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
