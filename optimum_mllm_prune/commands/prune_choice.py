"""`mllm-prune`: a size in bytes becomes a ratio, and method "auto" a method, by the paper's decision guide."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..backbone import Backbone, Sizes, model_class_of
from ..calibration.rows import open_rows
from ..configuration import PruningConfig
from ..errors import UserInputError
from ..number_formats import saved_dtype
from ..planning import PruningPlan
from ..planning.budget import budget_of
from ..planning.byte_sizes import parse_size
from ..planning.fitting import ratio_for_bytes, ratio_that_fits
from ..planning.footprint import Load, footprint, weight_bytes
from ..planning.guide import Advice, advise
from .prune_flags import LAYER_ONLY, WIDTH_ONLY, given


Make = Callable[..., PruningConfig]
"""A `PruningConfig` of the command's flags, with some keys changed."""


@dataclass(frozen=True)
class Choice:
    """What will be done.

    Attributes:
        config: with method and size settled.
        advice: the guide's, where it was asked; None where the method was named.
        meets: whether sizes and their parameters keep what was asked for in bytes; None where nothing was.
    """

    config: PruningConfig
    advice: Advice | None = None
    meets: Callable[[Sizes, int], bool] | None = None

    def met(self, plan: PruningPlan, backbone: Backbone) -> bool:
        """Whether a plan is as small as was asked for in bytes, if it was."""
        return self.meets is None or self.meets(plan.sizes(backbone), plan.parameters["after"])

    def check(self, sizes: Sizes, parameters: int) -> None:
        """Raise UserInputError where a plan is larger than what was asked for in bytes."""
        if self.meets is not None and not self.meets(sizes, parameters):
            raise UserInputError(
                "the plan is larger than the size that was asked for, as not all its layers are alike: allow less, or "
                "use method 'width'."
            )


def choose(args: Namespace, model_config: PreTrainedConfig, make: Make) -> Choice:
    """Settle size and method before any weight is loaded.

    Args:
        args: the command's.
        model_config: of the original model.
        make: makes the config of the flags.

    Raises:
        UserInputError: the size cannot be met, or two are given.
    """
    wanted = _in_bytes(args, model_config)
    asked = _asks_guide(args)
    if wanted is None and not asked:
        return Choice(make())
    backbone = Backbone(model_class_of(model_config), model_config, args.head_unit)
    config = _sized(backbone, make, wanted, args.method)
    if args.search and config.method == "layer":
        # Each plan of a search finds the ratio of its own; the metric is one of width.
        config = make(method="width", ratio=config.ratio)
    if not asked:
        return Choice(config, None, wanted and wanted.meets(backbone))
    ratio = round(budget_of(backbone, config).ratio, 6)
    advice = advise(ratio, args.recover, _rows_to_train_on(args))
    if advice.method != config.method:
        config = _sized(backbone, make, wanted, advice.method)
    return Choice(config, advice, wanted and wanted.meets(backbone))


def guided(advice: Advice | None, args: Namespace) -> Mapping[str, Any]:
    """Settings of the recovery that the guide changes and that were not given."""
    named = {setting.partition("=")[0] for setting in args.recover_set}
    if advice is None or advice.fraction in (None, 1.0) or args.recover_config or named & {"fraction", "max_samples"}:
        return {}
    return {"fraction": advice.fraction}


@dataclass(frozen=True)
class _Bytes:
    """A size in bytes: of the weights, or of all that a load takes (`load`)."""

    size: int
    dtype: torch.dtype
    load: Load | None

    def ratio(self, backbone: Backbone, config: PruningConfig) -> float:
        if self.load is None:
            return ratio_for_bytes(backbone, config, self.size, self.dtype)
        return ratio_that_fits(backbone, config, self.size, self.load)

    def meets(self, backbone: Backbone) -> Callable[[Sizes, int], bool]:
        if self.load is None:
            return lambda sizes, parameters: weight_bytes(parameters, self.dtype) <= self.size
        return lambda sizes, parameters: footprint(backbone, self.load, sizes).total <= self.size


def _in_bytes(args: Namespace, model_config: PreTrainedConfig) -> _Bytes | None:
    if args.target_size is None and args.fits is None:
        return None
    flags = ("ratio", "num_layers", "target_params", "target_size", "fits")
    sizes = given(args, flags)
    if len(sizes) > 1:
        raise UserInputError(f"{' and '.join(sizes)} both say how much to remove: give one of them.")
    dtype = _dtype(args, model_config)
    if args.fits is None:
        return _Bytes(parse_size(args.target_size), dtype, None)
    load = {key: getattr(args, key) for key in ("batch", "context", "images") if getattr(args, key) is not None}
    return _Bytes(parse_size(args.fits), dtype, Load(dtype, **load))


def _dtype(args: Namespace, model_config: PreTrainedConfig) -> torch.dtype:
    """The number format of the result's weights."""
    return saved_dtype(model_config) if args.dtype == "auto" else getattr(torch, args.dtype)


def _asks_guide(args: Namespace) -> bool:
    """What only one method can do, or a search, settles the method without it."""
    settled = args.num_layers or args.importance or args.search or given(args, (*WIDTH_ONLY, *LAYER_ONLY))
    return args.method == "auto" and not settled


def _sized(backbone: Backbone, make: Make, wanted: _Bytes | None, method: str) -> PruningConfig:
    if wanted is None:
        return make(method=method)
    choices = [method] if method != "auto" else ["width", "layer"]
    refused: list[UserInputError] = []
    for choice in choices:
        try:
            return make(method=choice, ratio=wanted.ratio(backbone, make(method=choice)))
        except UserInputError as error:
            refused.append(error)
    raise refused[0]


def _rows_to_train_on(args: Namespace) -> int | None:
    """How many there are, of local ones; those on the Hub are not fetched just to be counted."""
    dataset = args.recover_dataset or args.dataset
    if args.recover == "none" or not dataset or not Path(dataset).exists():
        return None
    return len(open_rows(dataset, None if args.recover_dataset else args.dataset_split))
