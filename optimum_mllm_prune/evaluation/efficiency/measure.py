"""What models cost and how fast they are, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel, ProcessorMixin

from ...checkpoint.report import environment
from ...errors import UserInputError
from ...quiet import quiet
from .comparison import Comparison, compare
from .cost import Cost, cost_of
from .inputs import check_length, count_text_tokens, prompt_inputs
from .memory import Memory, gpu_memory, process_memory
from .report import EfficiencyReport
from .size import size_of
from .speed import Runner, Speed, measure_speeds


class HasModel(Protocol):
    """A model in memory, and its processor where it has one."""

    @property
    def model(self) -> PreTrainedModel:
        """The model, in eval mode."""

    @property
    def processor(self) -> ProcessorMixin | None:
        """Its processor."""


class Loaded(NamedTuple):
    """The plainest thing that `measure_efficiency` takes."""

    model: PreTrainedModel
    processor: ProcessorMixin | None = None


_LEAST = {"batch_sizes": 1, "new_tokens": 2, "repeats": 1, "text_tokens": 1}


class Settings(NamedTuple):
    """How to measure; see `measure_efficiency`."""

    batch_sizes: tuple[int, ...]
    new_tokens: int
    repeats: int
    text_tokens: int


def measure_efficiency(
    models: Mapping[str, HasModel],
    batch_sizes: Sequence[int] = (1, 8),
    new_tokens: int = 32,
    repeats: int = 5,
    text_tokens: int = 64,
    folders: Mapping[str, str | Path] | None = None,
) -> dict[str, EfficiencyReport]:
    """Measure models in one run, in turns; every other one is compared with the first, the baseline.

    Each reads an image of noise and a question, or random text where it has no processor, and answers greedily with a
    cache, always with as many tokens.

    Args:
        models: by name, the baseline first; all in memory together, each on its own device.
        batch_sizes: rows generated together.
        new_tokens: tokens that each row gets, at least 2.
        repeats: timed runs of every model at every batch size; figures are their medians.
        text_tokens: length of the prompt beside its image, see `prompt_inputs`.
        folders: where models were loaded from, by name: tells bytes on disk, and on a CPU the memory of a fresh
            process that loads the folder.

    Returns:
        A report a model, by name.

    Raises:
        UserInputError: a number is out of range, a model cannot generate or is too short-sighted for the prompt, the
            models read prompts of different lengths, or a folder holds no weights.
    """
    settings = Settings(tuple(batch_sizes), new_tokens, repeats, text_tokens)
    homes = {name: Path(folder) for name, folder in (folders or {}).items()}
    _check(models, settings, homes)
    with quiet():
        runners = {name: _runner(loaded, text_tokens) for name, loaded in models.items()}
        sizes = {name: size_of(loaded.model, homes.get(name)) for name, loaded in models.items()}
        costs = {name: _cost(name, models[name], runner, new_tokens) for name, runner in runners.items()}
        _refuse_other_lengths(costs)
        memories = {name: _memory(models[name], runners[name], homes.get(name), settings) for name in models}
        speeds = measure_speeds(runners, settings.batch_sizes, new_tokens, repeats)
    baseline = next(iter(models))
    return {
        name: EfficiencyReport(
            name=name,
            baseline=None if name == baseline else baseline,
            inputs="text" if loaded.processor is None else "image + text",
            new_tokens=new_tokens,
            size=sizes[name],
            cost=costs[name],
            speed=speeds[name],
            speedup={} if name == baseline else _speedups(baseline, name, costs, speeds, settings),
            memory=memories[name],
            notes=list(_notes(loaded, costs[name], speeds[name], memories[name], homes.get(name))),
            environment=environment(loaded.model),
        )
        for name, loaded in models.items()
    }


def check_numbers(**settings: int | tuple[int, ...]) -> None:
    """Raise UserInputError where one of `Settings` is too small, or there is no batch size."""
    for key, value in settings.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or min(numbers) < _LEAST[key]:
            raise UserInputError(
                f"{key} must be at least {_LEAST[key]}, got {', '.join(map(str, numbers)) or 'none'}."
            )


def _check(models: Mapping[str, HasModel], settings: Settings, folders: Mapping[str, Path]) -> None:
    if not models:
        raise UserInputError("there is no model to measure: give at least one.")
    check_numbers(**settings._asdict())
    for name in folders.keys() - models.keys():
        raise UserInputError(f"there is a folder but no model for '{name}': give both under one name.")
    for name, loaded in models.items():
        if not loaded.model.can_generate():
            raise UserInputError(f"'{name}' cannot generate: give a model that answers with text.")


def _runner(loaded: HasModel, text_tokens: int) -> Runner:
    return Runner(loaded.model.eval(), partial(prompt_inputs, loaded.model, loaded.processor, text_tokens))


def _cost(name: str, loaded: HasModel, runner: Runner, new_tokens: int) -> Cost:
    inputs = runner.inputs(1)
    check_length(name, loaded.model, inputs["input_ids"].shape[1], new_tokens)
    return cost_of(loaded.model, inputs, count_text_tokens(loaded.processor, inputs))


def _refuse_other_lengths(costs: Mapping[str, Cost]) -> None:
    lengths = {name: cost.prompt_tokens for name, cost in costs.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise UserInputError(
            f"the models make prompts of different lengths ({told} tokens): compare models with the same processor."
        )


def _speedups(
    baseline: str,
    name: str,
    costs: Mapping[str, Cost],
    speeds: Mapping[str, Mapping[int, Speed | None]],
    asked: Settings,
) -> dict[int, Comparison | None]:
    pair = costs[baseline], costs[name]
    return {
        rows: compare(pair, (speeds[baseline][rows], speeds[name][rows]), rows, asked.new_tokens)
        for rows in asked.batch_sizes
    }


def _memory(loaded: HasModel, runner: Runner, folder: Path | None, settings: Settings) -> Memory | None:
    if loaded.model.device.type == "cuda":
        return gpu_memory(runner, settings.batch_sizes, settings.new_tokens)
    if loaded.model.device.type != "cpu" or folder is None:
        return None
    return process_memory(
        folder,
        loaded.model.dtype,
        loaded.processor is not None,
        settings.batch_sizes,
        settings.new_tokens,
        settings.text_tokens,
    )


def _notes(
    loaded: HasModel, cost: Cost, speeds: Mapping[int, Speed | None], memory: Memory | None, folder: Path | None
) -> Iterator[str]:
    if loaded.processor is None:
        yield "There is no processor: the prompt is text alone, and the vision tower was not run."
    if cost.cache is None:
        yield "The key-value cache is of a kind that cannot be read."
    if cost.decode_weight_bytes is None:
        yield "Experts share one tensor: which weights a step of decoding reads is not known."
    for rows, speed in speeds.items():
        if speed is None:
            yield f"Memory did not suffice for {rows} rows at once."
    if memory is None and folder is None:
        yield "Memory is measured in a process that loads the model's folder, and there is none."
    elif memory is None:
        yield "Memory could not be measured: the process ran out of it, or the system does not tell."
