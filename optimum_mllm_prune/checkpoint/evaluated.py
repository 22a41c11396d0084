"""What an evaluation adds to a finished checkpoint: figures, pictures, and what report and card say of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard

from .atomic import write_whole
from .card import CARD_NAME, rendered
from .discretion import discreet, discreet_command
from .evaluation_tables import category_table, efficiency_table, quality_table, task_table
from .recovered import opened_card, read_card, read_report
from .report import REPORT_NAME
from .sections import section_of, with_section


EVALUATION_NAME = "evaluation.json"
TASK = "image-text-to-text"
# What efficiency was measured on, as metadata want it said.
_PROMPTS = "made-up-prompts"


def add_evaluation(folder: Path, evaluation: Mapping[str, Any], pictures: Sequence[Path] = ()) -> None:
    """Write an evaluation into a checkpoint's folder, in place of an earlier one; everything else stays as it is.

    Each file is replaced as a whole, the card last, so that an interruption leaves a folder that can be used.

    Args:
        folder: of the checkpoint; where it has no card or report, they begin with this.
        evaluation: an `EvaluationReport` as a dict.
        pictures: PNG files, which are copied and shown in this order.

    Raises:
        UserInputError: the report or the card that is there cannot be read.
    """
    evaluation = discreet(dict(evaluation))
    report, card = read_report(folder), opened_card(read_card(folder), folder.resolve().name)
    earlier = report.get("evaluation")
    report = {**report, "evaluation": evaluation}
    shown = {picture.name: picture.stem.replace("_", " ").capitalize() for picture in pictures}
    card.text = with_section(card.text, "Evaluation", _told(evaluation, shown))
    _add_results(card, evaluation, earlier, folder.resolve().name)
    contents = {picture.name: picture.read_bytes() for picture in pictures}
    contents = {EVALUATION_NAME: _json(evaluation)} | contents | {REPORT_NAME: _json(report)}
    for name, content in (contents | {CARD_NAME: str(card).encode()}).items():
        write_whole(folder / name, content)


def has_evaluation(folder: Path, command: str) -> bool:
    """Whether report and card of a checkpoint tell of an evaluation that this command has made.

    Raises:
        UserInputError: the report cannot be read.
    """
    command = discreet_command(command)
    made = read_report(folder).get("evaluation") or {}
    # The card comes last: without it the folder is not done.
    return made.get("command") == command and command in section_of(read_card(folder), "Evaluation")


def eval_results(evaluation: Mapping[str, Any]) -> Iterator[EvalResult]:
    """The figures of the model as the metadata of a card hold them; what it retains of the original is a metric too.

    Not where less is better: there the share says how much worse it is.
    """
    dataset, baseline = evaluation["dataset"] or {}, evaluation["baseline"]
    for score in evaluation["quality"]:
        told = {"dataset_type": dataset["name"], "dataset_name": dataset["name"], "dataset_split": dataset["split"]}
        unit = " (%)" if score["unit"] == "percent" else ""
        yield from _result(score["metric"], score["metric"] + unit, score["value"]["value"], **told)
        if score["retained"] and score["higher_is_better"]:
            name = f"{score['metric']}, share of the original's, {baseline} (%)"
            yield from _result(f"{score['metric']}_retained", name, score["retained"]["value"], **told)
    for score in evaluation["tasks"].get("model", []):
        told = {"dataset_type": score["task"], "dataset_name": score["task"]}
        yield from _result(score["metric"], score["metric"], score["value"], **told)
    if "model" in evaluation["efficiency"]:
        yield from _efficiency_results(evaluation["efficiency"]["model"])


def _efficiency_results(report: Mapping[str, Any]) -> Iterator[EvalResult]:
    told = {"dataset_type": _PROMPTS, "dataset_name": f"made-up prompts ({report['inputs']})"}
    yield from _result("weight_bytes", "bytes of the weights", report["size"]["weight_bytes"], **told)
    for rows, speed in report["speed"].items():
        if speed is not None:
            where = {"batch_size": int(rows), "device": report["environment"]["device"]}
            first, rate = speed["first_token_seconds"]["median"], speed["decode_tokens_per_second"]["median"]
            yield from _result("first_token_seconds", "time to the first token (s)", first, metric_args=where, **told)
            yield from _result("decode_tokens_per_second", "decoding (tokens/s)", rate, metric_args=where, **told)


def _result(metric: str, name: str, value: float | None, **told: Any) -> Iterator[EvalResult]:
    if value is not None:
        value = float(f"{value:.5g}") if isinstance(value, float) else value
        yield EvalResult(task_type=TASK, metric_type=metric, metric_name=name, metric_value=value, **told)


def _add_results(card: ModelCard, new: Mapping[str, Any], earlier: Mapping[str, Any] | None, name: str) -> None:
    """Put results into the metadata in place of those of an earlier evaluation; those of others stay."""
    results = list(eval_results(new))
    ours = [_subject(result) for result in [*results, *(eval_results(earlier) if earlier else ())]]
    others = [result for result in card.data.get("eval_results", []) if _subject(result) not in ours]
    if others or results:
        card.data.eval_results = [*others, *results]
        card.data.model_name = card.data.get("model_name") or name
    else:
        card.data.eval_results = card.data.model_name = None


def _subject(result: EvalResult) -> tuple[Any, ...]:
    return result.unique_identifier, result.metric_type, result.metric_args


def _told(evaluation: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    efficiency, quality = evaluation["efficiency"], evaluation["quality"]
    measured = efficiency.get("model", {})
    notes = [f"{found['name']}: {note}" for found in efficiency.values() for note in found["notes"]]
    environment = measured.get("environment", {})
    return rendered(
        "evaluation.md.jinja",
        baseline=evaluation["baseline"],
        dataset=evaluation["dataset"],
        quality=quality_table(quality),
        confidence=f"{100 * quality[0]['value']['confidence']:g}" if quality else "",
        categories=category_table(quality),
        tasks=task_table(evaluation["tasks"]),
        efficiency=efficiency_table(efficiency),
        inputs=measured.get("inputs"),
        new_tokens=measured.get("new_tokens"),
        device=environment.get("device"),
        dtype=environment.get("dtype"),
        threads=environment.get("threads"),
        in_process=(measured.get("memory") or {}).get("kind") == "process",
        notes=notes,
        pictures={quote(name): words for name, words in pictures.items()},
        command=evaluation["command"],
        settings={key: value for key, value in evaluation["settings"].items() if value is not None},
        versions=evaluation["versions"],
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
