"""An evaluation, as plain data, as the tables of a card: each a list of rows of cells, its head first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


Table = list[list[str]]
UNKNOWN = "-"


class _Figure(NamedTuple):
    """A figure of one model: what it is called, its value, how that is written, whether less of it is better."""

    label: str
    value: float
    text: str
    less_is_better: bool = True


def quality_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each metric and for each figure beside it; empty without scores."""
    compared = any(score["baseline"] for score in scores)
    head = ["metric", "rows", *(["original", "this checkpoint", "retained", "p"] if compared else ["this checkpoint"])]
    rows = []
    for score in scores:
        less = "" if score["higher_is_better"] else ", less is better"
        unit = " (%" if score["unit"] == "percent" else " ("
        name = score["metric"] + (unit + less + ")").replace("(, ", "(").replace(" ()", "")
        digits = _digits(score)
        own, then = (_interval(score[key], digits) for key in ("value", "baseline"))
        beside = [then, own, _interval(score["retained"], 1, " %"), _p_value(score["test"])]
        rows.append([name, f"{score['rows']:,}", *(beside if compared else [own])])
        for extra, value in score["extras"].items():
            rows.append(
                [f"{score['metric']}: {extra}", *[""] * (1 + compared), _number(value), *[""] * (2 * compared)]
            )
    return [head, *rows] if rows else []


def category_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each category, a column for each metric; empty without categories."""
    scores = [score for score in scores if score["groups"]]
    if not scores:
        return []
    units = [" (%)" if score["unit"] == "percent" else "" for score in scores]
    head = ["category", "rows", *(score["metric"] + unit for score, unit in zip(scores, units, strict=True))]
    groups = scores[0]["groups"]
    return [head, *([name, f"{groups[name]['rows']:,}", *_of_group(scores, name)] for name in groups)]


def task_table(tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """A row for each benchmark and metric; empty where none was run."""
    before = {(score["task"], score["metric"]): score for score in tasks.get("baseline", [])}
    compared = ["original", "this checkpoint", "retained"] if before else ["this checkpoint"]
    rows = []
    for score in tasks.get("model", []):
        then = before.get((score["task"], score["metric"]))
        row = [score["task"], score["metric"], f"{score['n']:,}", *([_with_error(then)] if before else [])]
        rows.append([*row, _with_error(score), *([_retained(score, then)] if before else [])])
    return [["benchmark", "metric", "rows", *compared], *rows] if rows else []


def efficiency_table(efficiency: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each figure; beside a baseline how many times better it is, and the best that is possible.

    Empty where nothing was measured.
    """
    if "model" not in efficiency:
        return []
    own = {figure.label: figure for figure in _figures(efficiency["model"])}
    if "baseline" not in efficiency:
        return [["", "this checkpoint"], *([label, figure.text] for label, figure in own.items())]
    before = {figure.label: figure for figure in _figures(efficiency["baseline"])}
    gains = dict(_speedups(efficiency["model"]))
    rows = []
    for label in dict.fromkeys([*before, *own]):
        then, now = before.get(label), own.get(label)
        gain = gains.get(label, (_ratio(then, now), ""))
        rows.append([label, then.text if then else UNKNOWN, now.text if now else UNKNOWN, *gain])
    return [["", "original", "this checkpoint", "times better", "at best"], *rows]


def _of_group(scores: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """What each metric says of a category."""
    for score in scores:
        group = score["groups"].get(name)
        own = _interval(group["value"], _digits(score)) if group else UNKNOWN
        compared = group and score["baseline"]
        yield f"{_number(group['baseline'], _digits(score))} → {own}" if compared else own


def _figures(report: Mapping[str, Any]) -> Iterator[_Figure]:
    size, cost, memory = report["size"], report["cost"], report["memory"]
    yield _Figure("parameters", size["parameters"], f"{size['parameters']:,}")
    yield _megabytes("weights in memory", size["weight_bytes"])
    if size["disk_bytes"] is not None:
        yield _megabytes("weights on disk", size["disk_bytes"])
    if cost["cache"] is not None and cost["cache"]["per_token"]:
        kept = cost["cache"]["per_token"]
        yield _Figure("cache, each token (kB)", kept, f"{kept / 1e3:,.1f}")
    flops, tokens = cost["prefill_flops"], cost["prompt_tokens"]
    yield _Figure(f"operations up to the first token, {tokens} tokens (GFLOP)", flops, f"{flops / 1e9:,.2f}")
    for rows, speed in report["speed"].items():
        if speed is not None:
            yield _timing(_first_token(rows), speed["first_token_seconds"], 1000, less_is_better=True)
            yield _timing(_decoding(rows), speed["decode_tokens_per_second"], 1, less_is_better=False)
    if memory is not None:
        yield _megabytes("memory, loaded", memory["loaded"] - memory["empty"])
        for rows, peak in memory["peak"].items():
            if peak is not None:
                yield _megabytes(f"memory, peak, {_rows(rows)}", peak - memory["empty"])


def _speedups(report: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Label of a figure to how many times faster it is, and could be."""
    on_cpu = report["environment"]["device"] == "cpu"
    for rows, found in report["speedup"].items():
        for label, phase in ((_first_token(rows), "prefill"), (_decoding(rows), "decode")):
            if found is not None:
                gain = found[phase]
                apart = f" ({gain['measured_cpu']:.2f})" if on_cpu else ""
                yield label, (f"{gain['measured']:.2f}{apart}", _number(gain["ideal"]))


def _first_token(rows: str) -> str:
    return f"first token, {_rows(rows)} (ms)"


def _decoding(rows: str) -> str:
    return f"decoding, {_rows(rows)} (tokens/s)"


def _rows(count: str) -> str:
    return f"{count} row{'s' * (count != '1')}"


def _megabytes(label: str, count: int) -> _Figure:
    return _Figure(f"{label} (MB)", count, f"{count / 1e6:,.1f}")


def _timing(label: str, timing: Mapping[str, float], unit: int, less_is_better: bool) -> _Figure:
    median, low, high = (timing[key] * unit for key in ("median", "low", "high"))
    return _Figure(label, median, f"{median:,.1f} ({low:,.1f}-{high:,.1f})", less_is_better)


def _ratio(before: _Figure | None, after: _Figure | None) -> str:
    if before is None or after is None or not before.value or not after.value:
        return UNKNOWN
    ratio = before.value / after.value
    return f"{ratio if before.less_is_better else 1 / ratio:.2f}"


def _digits(score: Mapping[str, Any]) -> int:
    return 1 if score["unit"] == "percent" else 2


def _interval(interval: Mapping[str, Any] | None, digits: int, unit: str = "") -> str:
    if interval is None or interval["value"] is None:
        return UNKNOWN
    value, low, high = (_number(interval[key], digits) for key in ("value", "low", "high"))
    return f"{value}{unit}" + ("" if interval["low"] is None else f" ({low}-{high})")


def _p_value(test: Mapping[str, Any] | None) -> str:
    return UNKNOWN if test is None or test["p_value"] is None else f"{test['p_value']:.2g}"


def _with_error(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return UNKNOWN
    return f"{score['value']:.4g}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.2g}")


def _retained(score: Mapping[str, Any], then: Mapping[str, Any] | None) -> str:
    if then is None or not then["value"] or score["value"] is None:
        return UNKNOWN
    return f"{100 * score['value'] / then['value']:.1f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"
