"""Reports side by side, as text."""

from collections.abc import Iterator, Mapping

from .report import EfficiencyReport
from .speed import Timing


def markdown_table(reports: Mapping[str, EfficiencyReport]) -> str:
    """A table in Markdown, a column a model; figures that are not known are a dash.

    Times are medians (low - high); a speed-up stands beside the ideal one and its share of that.
    """
    head, *lines = efficiency_rows(reports)
    ruled = [head, ("---", *["---:"] * len(reports)), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def efficiency_rows(reports: Mapping[str, EfficiencyReport]) -> list[tuple[str, ...]]:
    """The cells of that table, line by line, its head first."""
    columns = [dict(_cells(report)) for report in reports.values()]
    labels = dict.fromkeys(label for column in columns for label in column)
    return [("", *reports), *((label, *(column.get(label, "-") for column in columns)) for label in labels)]


def _cells(report: EfficiencyReport) -> Iterator[tuple[str, str]]:
    on_cpu = report.environment["device"] == "cpu"
    yield from _static_cells(report)
    for rows, speed in report.speed.items():
        if speed is not None:
            yield f"first token, batch {rows} (ms)", _timing(speed.first_token_seconds, 1000)
            yield f"decoding, batch {rows} (tokens/s)", _timing(speed.decode_tokens_per_second)
    for rows, compared in report.speedup.items():
        if compared is not None:
            for phase, found in (("prefill", compared.prefill), ("decoding", compared.decode)):
                yield f"speed-up of {phase}, batch {rows}", _speedup(found.measured, found.ideal)
                if on_cpu:
                    yield f"speed-up of {phase}, batch {rows}, in CPU time", _speedup(found.measured_cpu, found.ideal)
    yield from _memory_cells(report)


def _static_cells(report: EfficiencyReport) -> Iterator[tuple[str, str]]:
    size, cost = report.size, report.cost
    yield "parameters", f"{size.parameters:,}"
    yield "weights in memory (MB)", _mb(size.weight_bytes)
    if size.disk_bytes is not None:
        yield "weights on disk (MB)", _mb(size.disk_bytes)
    if cost.cache is not None:
        yield (
            f"cache at {cost.prompt_tokens + report.new_tokens} tokens (MB)",
            _mb(cost.cache.bytes_at(cost.prompt_tokens + report.new_tokens)),
        )
    yield f"prefill of {cost.prompt_tokens} tokens (GFLOP)", f"{cost.prefill_flops / 1e9:,.2f}"


def _memory_cells(report: EfficiencyReport) -> Iterator[tuple[str, str]]:
    if report.memory is not None:
        yield "memory without the model (MB)", _mb(report.memory.empty)
        yield "memory, loaded (MB)", _mb(report.memory.loaded)
        for rows, peak in report.memory.peak.items():
            if peak is not None:
                yield f"memory, peak at batch {rows} (MB)", _mb(peak)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _timing(timing: Timing, unit: float = 1) -> str:
    return f"{timing.median * unit:.1f} ({timing.low * unit:.1f} - {timing.high * unit:.1f})"


def _speedup(measured: float, ideal: float | None) -> str:
    if ideal is None:
        return f"{measured:.2f}"
    return f"{measured:.2f} of {ideal:.2f} ({measured / ideal:.0%})"
