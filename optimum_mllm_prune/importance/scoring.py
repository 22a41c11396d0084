"""Calibration rows through the model, observers attached: the scores, and what they rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from ..backbone import (
    Backbone,
    Group,
    NotExpressibleError,
    is_offloaded,
    refuse_offloaded_outside,
    with_layouts,
)
from ..calibration.batches import MODALITIES, Batch, alike, make_batch
from ..calibration.engine import evaluating, run_calibration
from ..calibration.layerwise import run_layer_by_layer
from ..calibration.processes import added_up, dealt, launch, refuse_more_than, total
from ..calibration.progress import Progress, restore, state_of
from ..calibration.row_forms import Row
from ..calibration.rows import load_rows
from ..errors import UserInputError
from ..fingerprints import model_fingerprint, processor_fingerprint, value_fingerprint
from .held import refuse_held_otherwise
from .observer import ByModality, Observer, Subject
from .registry import METRICS, Metric, companions, metric_of, scored_as
from .runs import RUNS, runs_within
from .scores import Scores, by_layer


if TYPE_CHECKING:
    from ..configuration import PruningConfig

DEFAULT_BATCH_SIZE = 8
COUNTED = {modality.name.lower(): modality for modality in MODALITIES}


def score(
    model: PreTrainedModel,
    processor: ProcessorMixin | None,
    backbone: Backbone,
    config: PruningConfig,
    dataset: Any,
    resume_file: Path | None = None,
) -> tuple[Scores, dict[str, Any] | None]:
    """Importance of every removable part, for layers and width (and hidden, where asked for) from the same passes.

    Args:
        model: its weights do not change.
        processor: needed where the metric looks at data.
        backbone: of `model`.
        config: names the metric, the number of rows and the seed.
        dataset: rows, a data set, a folder, a file or a Hub id; needed where the metric looks at data.
        resume_file: where a calibration of more than half a minute keeps what it has found; of one that was broken
            off, it goes on from there. Of a launch of several processes nothing is kept.

    Returns:
        The scores, and what is reported of the calibration: None where weights alone decided.

    Raises:
        UserInputError: the data cannot be used, or it or the processor is not there; weights are offloaded; no width
            can change but that is the method; scores are not finite; no token counts by the weights of modalities.
    """
    scored = scored_as(config.method)
    refuse_offloaded_outside(model, backbone.layers_prefix)
    refuse_held_otherwise(model, config)
    groups, left_out = _located(model, backbone)
    if scored == "width":
        backbone.without(left_out).width_groups()
    with_hidden = config.shares[1] > 0
    protected = frozenset(backbone.protected_layers) | frozenset(config.protected_layers or ())
    subject = Subject(model, backbone.layers_prefix, tuple(groups), config.seed, protected)
    metrics = {scored: config.importance} | companions(scored, config.importance, with_hidden)
    subjects = {"hidden": _of_hidden(subject, backbone)} if with_hidden else {}
    observers = [METRICS[name][method].create(subjects.get(method, subject)) for method, name in metrics.items()]
    calibration = _calibrate(subject, processor, config, dataset, observers, resume_file)
    found = [_finite(observer, name) for observer, name in zip(observers, metrics.values(), strict=True)]
    tensors, statistics = _gathered(found, groups, backbone), _kept_apart(observers, groups, backbone)
    scores = Scores(tensors, metrics, backbone.fingerprint, left_out, statistics)
    return scores.weighted(config.modality_weights), calibration


def _located(model: PreTrainedModel, backbone: Backbone) -> tuple[list[Group], dict[str, str]]:
    """The width groups whose layout is known, and for each other kind the reason."""
    groups, left_out = [], {}
    for group in backbone.groups()[0]:
        try:
            groups.append(with_layouts(group, model))
        except NotExpressibleError as error:
            left_out[group.kind] = str(error)
    return groups, left_out


def _of_hidden(subject: Subject, backbone: Backbone) -> Subject:
    """The residual stream instead of heads and channels."""
    stream = backbone.residual_stream()
    return replace(subject, groups=(stream.projector,) if stream.projector else (), hidden=stream)


def _calibrate(
    subject: Subject,
    processor: ProcessorMixin | None,
    config: PruningConfig,
    dataset: Any,
    observers: Sequence[Observer],
    resume_file: Path | None,
) -> dict[str, Any] | None:
    metric = metric_of(config.importance, config.method)
    if metric.needs == "weights":
        return None
    if processor is None:
        raise UserInputError(f"importance '{config.importance}' needs a processor to read rows: give MLLMPruner one.")
    if dataset is None:
        raise UserInputError(
            f"importance '{config.importance}' needs calibration rows: give a dataset, or a metric of weights alone."
        )
    rows = load_rows(dataset, config.dataset_split, config.num_samples or metric.samples, config.seed)
    size, groups = _dealt(rows, metric, config)
    progress = _progress(resume_file, subject, processor, rows, config)
    counts: Counter[str] = Counter()
    made: Iterable[Batch] = _counted((make_batch(processor, group) for group in groups), counts)
    if metric.needs == "rows":
        made = [batch.to(subject.model.device, subject.model.dtype) for batch in made]
        with evaluating(subject.model), torch.no_grad():
            observers[0].run(made, progress)
        observers = observers[1:]
    if is_offloaded(subject.model) and all(site.layer is not None for group in subject.groups for site in group.sites):
        run_layer_by_layer(subject.model, made, observers, subject.layers, progress)
    else:
        backward = metric.needs == "backward"
        _run_whole(subject, made, observers, backward, len(groups), config.gradient_checkpointing, progress)
    for observer in observers:
        added_up(() if observer.joint else observer.accumulators())
    return {
        "dataset": config.dataset,
        "split": config.dataset_split,
        "samples": len(rows),
        "batch_size": size,
        "processes": launch().num_processes,
        "tokens": {name: round(total(counts[name])) for name in COUNTED},
        "seed": config.seed,
        "importance": config.importance,
    }


def _run_whole(
    subject: Subject,
    batches: Iterable[Batch],
    observers: Sequence[Observer],
    backward: bool,
    total: int,
    gradient_checkpointing: bool,
    progress: Progress,
) -> None:
    """As many passes over all batches as each observer wants; where that is one, it can be resumed in the middle."""
    passes = max((observer.passes for observer in observers), default=0)
    batches = list(batches) if passes > 1 else batches
    found = progress.of("passes")
    if found is not None:
        restore(observers, found)
    begun, skipped = (int(found["pass"]), int(found["batches"])) if found else (0, 0)

    def keep(number: int, batch: int, finished: bool = False) -> None:
        place = {"pass": torch.tensor(number), "batches": torch.tensor(batch)}
        progress.keep("passes", lambda: state_of(observers) | place, finished)

    for number in range(begun, passes):
        run_calibration(
            subject.model,
            batches,
            [observer for observer in observers if observer.passes > number],
            subject.layers,
            backward,
            total,
            gradient_checkpointing,
            skipped if number == begun else 0,
            after=partial(keep, number) if passes == 1 else None,
        )
        keep(number + 1, 0, finished=number + 1 == passes)


def _progress(
    file: Path | None, subject: Subject, processor: ProcessorMixin, rows: Sequence[Row], config: PruningConfig
) -> Progress:
    """What was kept of a calibration that has the same model, processor, rows and wish."""
    if file is None or launch().num_processes > 1:
        return Progress()
    wish = {
        "method": scored_as(config.method),
        "hidden": config.shares[1] > 0,
        "importance": config.importance,
        "batch_size": config.batch_size,
        "head_unit": config.head_unit,
        "seed": config.seed,
        "protected": sorted(subject.protected),
        "model": model_fingerprint(subject.model, fetch=False),
        "dtype": str(subject.model.dtype),
        "processor": processor_fingerprint(processor),
        "rows": value_fingerprint(rows),
    }
    return Progress(file, value_fingerprint(wish))


def _dealt(rows: Sequence[Row], metric: Metric, config: PruningConfig) -> tuple[int, list[list[Row]]]:
    """How many rows a batch has, and those of each batch of this process.

    Of batches whose rows belong together, every process of a launch gets a part; else, whole ones.
    """
    processes = launch().num_processes
    if metric.batch == "all":
        size = config.batch_size or len(rows)
        groups = list(alike(rows, size))
        mend = "start fewer, or choose importance 'taylor_group', whose batches can be dealt out"
        refuse_more_than(min(map(len, groups)), f"rows of a batch of importance '{config.importance}'", mend)
        return size, [list(dealt(group)) for group in groups]
    refuse_more_than(len(rows), "calibration rows", "start fewer, or give more rows")
    size = 1 if metric.batch == "one" else min(config.batch_size or DEFAULT_BATCH_SIZE, len(rows) // processes)
    return size, list(dealt(list(alike(rows, size))))


def _counted(made: Iterator[Batch], counts: Counter[str]) -> Iterator[Batch]:
    """Count real tokens by modality on the way."""
    for batch in made:
        for name, modality in COUNTED.items():
            counts[name] += int((batch.modality == modality).sum())
        yield batch


def _finite(observer: Observer, name: str) -> dict[str, Tensor]:
    """The observer's scores. Raises UserInputError where they are not finite."""
    found, dtype = observer.scores(), observer.subject.model.dtype
    if not all(_all_finite(kind, rows) for kind, rows in found.items()):
        mend = (
            "load the model with dtype bfloat16 or float32" if dtype == torch.float16 else "check the model's weights"
        )
        raise UserInputError(f"importance '{name}' is not finite in {str(dtype).removeprefix('torch.')}: {mend}.")
    return found


def _all_finite(kind: str, rows: Tensor) -> bool:
    return bool((rows[runs_within(len(rows))] if kind == RUNS else rows).isfinite().all())


def _gathered(found: Sequence[dict[str, Tensor]], groups: Sequence[Group], backbone: Backbone) -> dict[str, Tensor]:
    by_kind = {group.kind: group for group in groups}
    tensors: dict[str, Tensor] = {}
    for scores in found:
        for kind, rows in scores.items():
            group = by_kind.get(kind)
            tensors |= by_layer(group, rows, backbone.num_layers) if group else {kind: rows}
    return tensors


def _kept_apart(observers: Sequence[Observer], groups: Sequence[Group], backbone: Backbone) -> dict[str, Tensor]:
    """Statistics by layer, of those that have them."""
    by_kind = {group.kind: group for group in groups}
    found: dict[str, Tensor] = {}
    for observer in observers:
        for kind, statistics in observer.statistics().items() if isinstance(observer, ByModality) else ():
            for name, rows in statistics.items():
                homes = {kind: rows} if kind == "layers" else by_layer(by_kind[kind], rows, backbone.num_layers)
                found |= {f"{home}.{name}": tensor.contiguous() for home, tensor in homes.items()}
    return found
